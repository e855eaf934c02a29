//! Single steps: sizes, layouts, options, the convolution before them, and states found by an index.

mod agreement;
mod counters;
mod errors;
mod problem;
mod queue;

use half::{bf16, f16};
use seqmix::causal_conv1d::Activation;
use seqmix::selective_scan::{Numbers, StepConfig};

use problem::check;

/// Sizes and options of one step.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    heads: usize,
    headdim: usize,
    /// States of a channel; complex ones are two floats each.
    dstate: usize,
    groups: usize,
    /// Whether A, dt, dt_bias and D are one number for each head, as in Mamba-2.
    per_head: bool,
    config: StepConfig,
    d: bool,
    dt_bias: bool,
    z: bool,
    /// Whether D and dt_bias are of the type of x.
    same: bool,
    /// The order of the state's axes in memory, outermost first.
    order: [usize; 4],
    /// Elements that inputs and outputs begin after an aligned address.
    shift: usize,
    /// The entry of each row, of `entries` that there are.
    indices: Option<&'static [i32]>,
    entries: usize,
    /// Width and slots of a convolution, and the number of the step of the first row; that of each row after it is one
    /// less.
    convolution: Option<([usize; 2], i32)>,
    /// The order of the axes of the convolution's state in memory.
    ring_order: [usize; 3],
    bias: bool,
    activation: Activation,
}

impl Case {
    /// As mamba-ssm steps Mamba-1.
    fn mamba(batch: usize, dim: usize, dstate: usize) -> Self {
        Self {
            batch,
            heads: 1,
            headdim: dim,
            dstate,
            groups: 1,
            per_head: false,
            config: StepConfig {
                dt_softplus: true,
                ..StepConfig::default()
            },
            d: true,
            dt_bias: true,
            z: true,
            same: false,
            order: [0, 1, 2, 3],
            shift: 0,
            indices: None,
            entries: batch,
            convolution: None,
            ring_order: [0, 1, 2],
            bias: true,
            activation: Activation::Silu,
        }
    }

    /// As mamba-ssm steps Mamba-2.
    fn mamba2(batch: usize, heads: usize, headdim: usize, dstate: usize) -> Self {
        Self {
            heads,
            per_head: true,
            ..Self::mamba(batch, headdim, dstate)
        }
    }

    fn complex(self) -> Self {
        let config = StepConfig {
            numbers: Numbers::Complex,
            ..self.config
        };
        Self { config, ..self }
    }

    fn is_complex(&self) -> bool {
        self.config.numbers == Numbers::Complex
    }

    fn floats(&self) -> usize {
        self.dstate * if self.is_complex() { 2 } else { 1 }
    }

    fn dim(&self) -> usize {
        self.heads * self.headdim
    }

    fn conv_dim(&self) -> usize {
        self.dim() + 2 * self.groups * self.floats()
    }

    fn width(&self) -> usize {
        self.convolution.map_or(0, |([width, _], _)| width)
    }

    fn slots(&self) -> usize {
        self.convolution.map_or(0, |([_, slots], _)| slots)
    }

    /// The entry of a row, if it has one.
    fn entry(&self, row: usize) -> Option<usize> {
        let entry = match self.indices {
            Some(indices) => usize::try_from(indices[row]).ok()?,
            None => row,
        };
        (entry < self.entries).then_some(entry)
    }
}

fn check_all(case: Case) {
    check::<f16>(case);
    check::<bf16>(case);
    check::<f32>(case);
}

/// Whole and broken pieces of four states, one lane and many to a channel, and more than one piece of a lane.
#[test]
fn any_number_of_states() {
    for dstate in [1, 2, 3, 4, 5, 7, 16, 17, 64, 100, 128, 130, 255, 256] {
        check::<f16>(Case::mamba(2, 9, dstate));
        check::<bf16>(Case::mamba2(2, 3, 5, dstate));
    }
    for dstate in [1, 2, 3, 16, 33, 128] {
        check::<f32>(Case::mamba(2, 9, dstate).complex());
    }
}

#[test]
fn any_size() {
    for dim in [1, 31, 63, 64, 65, 256, 700] {
        check_all(Case::mamba(2, dim, 16));
    }
    for (batch, heads, headdim) in [(1, 1, 1), (40, 2, 8), (3, 7, 33), (1, 24, 64)] {
        check_all(Case::mamba2(batch, heads, headdim, 32));
    }
}

#[test]
fn groups_share_b_and_c() {
    for groups in [1, 2, 3, 6] {
        check_all(Case {
            groups,
            ..Case::mamba2(2, 6, 20, 16)
        });
        // each channel as a head of its own
        check_all(Case {
            groups,
            heads: 90,
            ..Case::mamba(2, 1, 16)
        });
        check_all(Case {
            groups,
            heads: 6,
            ..Case::mamba(2, 15, 8).complex()
        });
    }
}

#[test]
fn every_option() {
    for (d, dt_bias, z) in [
        (false, false, false),
        (true, false, false),
        (false, true, false),
        (false, false, true),
    ] {
        for (dt_softplus, same) in [(false, true), (true, false)] {
            let case = Case::mamba2(2, 3, 20, 16);
            check_all(Case {
                d,
                dt_bias,
                z,
                same,
                config: StepConfig {
                    dt_softplus,
                    ..case.config
                },
                ..case
            });
        }
    }
    for dt_limit in [(0.3, 0.9), (0.0, 0.1), (1.5, f32::INFINITY)] {
        let case = Case::mamba2(2, 3, 20, 16);
        check_all(Case {
            config: StepConfig {
                dt_limit,
                ..case.config
            },
            ..case
        });
    }
}

/// Where four states do not lie as one aligned piece, they are read one by one.
#[test]
fn any_layout() {
    for order in [[0, 1, 2, 3], [0, 1, 3, 2], [3, 0, 1, 2], [2, 1, 0, 3]] {
        for shift in [0, 1] {
            let case = Case {
                order,
                shift,
                ..Case::mamba2(2, 3, 5, 18)
            };
            check_all(case);
            check_all(Case {
                dstate: 16,
                per_head: false,
                ..case
            });
        }
    }
}

/// Entries in any order; what names none is padding, and touches neither states nor out.
#[test]
fn states_are_found_by_their_index() {
    for indices in [
        &[4, 0, 2],
        &[1, -1, 5],
        &[6, i32::MAX, 0],
        &[i32::MIN, -1, 3],
    ] {
        for convolution in [None, Some(([4, 4], 7))] {
            check_all(Case {
                indices: Some(indices),
                entries: 6,
                convolution,
                ..Case::mamba2(3, 4, 8, 16)
            });
        }
    }
}

#[test]
fn a_convolution_of_every_width() {
    for width in 2..=8 {
        for slots in [width, width + 1, 16] {
            check_all(Case {
                convolution: Some(([width, slots], 40)),
                ..Case::mamba2(2, 3, 5, 18)
            });
        }
    }
    for (bias, activation) in [(false, Activation::Silu), (true, Activation::None)] {
        check_all(Case {
            convolution: Some(([4, 4], 3)),
            bias,
            activation,
            ..Case::mamba2(2, 3, 80, 16)
        });
    }
}

/// The slot of a step goes around, also of numbers that are none of a step.
#[test]
fn a_convolution_at_any_step() {
    for step in [0, 1, 2, 3, 4, 5, 9, i32::MAX, -1, i32::MIN + 1] {
        for ring_order in [[0, 1, 2], [0, 2, 1], [2, 1, 0]] {
            check_all(Case {
                convolution: Some(([4, 5], step)),
                ring_order,
                groups: 2,
                ..Case::mamba2(2, 4, 12, 16)
            });
        }
    }
    // complex numbers, and channels that are heads
    check_all(Case {
        convolution: Some(([3, 4], 8)),
        ..Case::mamba(2, 30, 6).complex()
    });
    check_all(Case {
        convolution: Some(([4, 6], 8)),
        heads: 60,
        ..Case::mamba(2, 1, 16)
    });
}

#[test]
fn empty_problems() {
    check_all(Case::mamba(0, 8, 16));
    check_all(Case::mamba(2, 0, 16));
    check_all(Case::mamba2(2, 0, 4, 16));
    check_all(Case {
        indices: Some(&[0, 1]),
        entries: 0,
        ..Case::mamba(2, 8, 16)
    });
}

/// Step sizes to 100 and A to -1e4 leave nothing of a state; inputs of 1e4 stay what they are.
#[test]
fn nothing_overflows() {
    problem::check_extremes::<f16>();
    problem::check_extremes::<bf16>();
    problem::check_extremes::<f32>();
}
