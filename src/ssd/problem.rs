//! [`Problem`]: what a call asks for, once its tensors are known to agree. Pure.

use super::Config;
use crate::abi::Dtype;
use crate::abi::ssd::{CHUNK, Layer, Rows, States, WALK};
use crate::error::{Error, Result};
use crate::tensor::Layout;

/// Steps that a tensor may have: the kernels add a segment to them in 32 bits.
const MAX_STEPS: usize = 1 << 30;

/// Heads, channels of a head: the kernels multiply their numbers of slices in 32 bits.
const MAX_HEADS: usize = 1 << 15;

/// Elements of a 16-byte copy of 16-bit types, and what `headdim` and `dstate` are multiples of.
const COPY: usize = 8;

/// Numbers of a 16-byte copy of states.
const STATE_COPY: usize = 4;

/// Shapes and strides of the tensors of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layouts {
    pub(super) x: Layout<4>,
    pub(super) dt: Layout<3>,
    pub(super) a: Layout<1>,
    pub(super) b: Layout<4>,
    pub(super) c: Layout<4>,
    pub(super) d: Option<SkipLayout>,
    pub(super) z: Option<Layout<4>>,
    pub(super) dt_bias: Option<Layout<1>>,
    pub(super) initial_states: Option<Layout<4>>,
    pub(super) cu_seqlens: Option<Layout<1>>,
    pub(super) out: Layout<4>,
    pub(super) final_states: Option<Layout<4>>,
}

/// D, per head or per channel.
#[derive(Clone, Copy, Debug)]
pub(super) enum SkipLayout {
    PerHead(Layout<1>),
    PerChannel(Layout<2>),
}

/// A checked layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) dtype: Dtype,
    pub(super) sequences: usize,
    pub(super) heads: usize,
    pub(super) groups: usize,
    pub(super) headdim: usize,
    pub(super) dstate: usize,
    /// Steps of each sequence, or of all together if the lengths vary.
    pub(super) steps: usize,
    /// Whether sequences lie one after the other in one row of the batch.
    pub(super) packed: bool,
    /// Steps of a segment that were asked for.
    pub(super) segment: Option<usize>,
    /// For the kernels, without addresses and the length of segments.
    pub(super) layer: Layer,
    pub(super) out: Rows,
    pub(super) initial: States,
    pub(super) last: States,
}

impl Problem {
    /// The problem of these tensors.
    pub(super) fn new(
        op: &'static str,
        dtype: Dtype,
        config: Config,
        layouts: &Layouts,
    ) -> Result<Self> {
        let check = Check(op);
        let Layouts { x, dt, a, b, c, .. } = layouts;
        let ([batch, steps, heads, headdim], [_, _, groups, dstate]) = (x.shape, b.shape);
        check.sizes("dt", [batch, steps, heads], dt.shape)?;
        check.sizes("a", [heads], a.shape)?;
        check.sizes("b", [batch, steps, groups, dstate], b.shape)?;
        check.sizes("c", b.shape, c.shape)?;
        check.sizes("out", x.shape, layouts.out.shape)?;
        if let Some(z) = layouts.z {
            check.sizes("z", x.shape, z.shape)?;
        }
        if let Some(dt_bias) = layouts.dt_bias {
            check.sizes("dt_bias", [heads], dt_bias.shape)?;
        }
        match layouts.d {
            None => {}
            Some(SkipLayout::PerHead(d)) => check.sizes("d", [heads], d.shape)?,
            Some(SkipLayout::PerChannel(d)) => check.sizes("d", [heads, headdim], d.shape)?,
        }
        let sequences = check.sequences(batch, layouts.cu_seqlens)?;
        let states = [sequences, heads, headdim, dstate];
        for (name, layout) in [
            ("initial_states", layouts.initial_states),
            ("final_states", layouts.final_states),
        ] {
            if let Some(layout) = layout {
                check.sizes(name, states, layout.shape)?;
            }
        }
        let heads_per_group = check.heads_per_group(heads, groups)?;
        let largest = WALK.iter().map(|row| row.size).max().unwrap_or(0);
        check.multiple("headdim", headdim, MAX_HEADS)?;
        check.multiple("dstate", dstate, largest)?;
        check.at_most("x", steps, MAX_STEPS, "steps")?;
        check.at_most("x", heads, MAX_HEADS, "heads")?;
        check.config(config)?;

        let packed = layouts.cu_seqlens.is_some();
        let rows = |name, layout: &Layout<4>| -> Result<Rows> {
            let [batch, step, head, _] = check.strides(name, layout, COPY, true)?;
            Ok(Rows {
                at: 0,
                batch_stride: if packed { 0 } else { batch },
                step_stride: step,
                head_stride: head,
            })
        };
        let optional = |name, layout: Option<Layout<4>>| match layout {
            Some(layout) => rows(name, &layout),
            None => Ok(Rows::default()),
        };
        let states = |name, layout: Option<Layout<4>>| -> Result<States> {
            let Some(layout) = layout else {
                return Ok(States::default());
            };
            let [sequence, head, channel, _] = check.strides(name, &layout, STATE_COPY, true)?;
            Ok(States {
                at: 0,
                sequence_stride: sequence,
                head_stride: head,
                channel_stride: channel,
            })
        };
        let [dt_batch, dt_step, dt_head] = check.strides("dt", dt, 1, false)?;
        check.strides("a", a, 1, true)?;
        for (name, layout) in [
            ("dt_bias", layouts.dt_bias),
            ("cu_seqlens", layouts.cu_seqlens),
        ] {
            if let Some(layout) = layout {
                check.strides(name, &layout, 1, true)?;
            }
        }
        let [d_head, d_channel] = match layouts.d {
            None => [0, 0],
            Some(SkipLayout::PerHead(d)) => {
                let [head] = check.strides("d", &d, 1, false)?;
                [head, 0]
            }
            Some(SkipLayout::PerChannel(d)) => check.strides("d", &d, 1, false)?,
        };
        Ok(Self {
            dtype,
            sequences,
            heads,
            groups,
            headdim,
            dstate,
            steps,
            packed,
            segment: config.segment,
            layer: Layer {
                x: rows("x", x)?,
                dt: Rows {
                    at: 0,
                    batch_stride: if packed { 0 } else { dt_batch },
                    step_stride: dt_step,
                    head_stride: dt_head,
                },
                b: rows("b", b)?,
                c: rows("c", c)?,
                z: optional("z", layouts.z)?,
                d_head_stride: d_head,
                d_channel_stride: d_channel,
                // checked above: all are below 2^31
                steps: steps as i32,
                heads: heads as i32,
                heads_per_group: heads_per_group as i32,
                headdim: headdim as i32,
                dstate: dstate as i32,
                softplus: config.dt_softplus.into(),
                dt_min: config.dt_limit.0,
                dt_max: config.dt_limit.1,
                ..Layer::default()
            },
            out: rows("out", &layouts.out)?,
            initial: states("initial_states", layouts.initial_states)?,
            last: states("final_states", layouts.final_states)?,
        })
    }

    /// Whether there is neither an output nor a state.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences == 0 || self.heads == 0
    }

    /// Chunks of the longest sequence; if lengths vary, which the host does not know, of an average
    /// one.
    pub(super) fn chunks(&self) -> usize {
        let steps = match self.packed {
            true => self.steps.div_ceil(self.sequences.max(1)),
            false => self.steps,
        };
        steps.div_ceil(CHUNK)
    }
}

/// The checks, for the messages of the operation of this name.
#[derive(Clone, Copy)]
struct Check(&'static str);

impl Check {
    fn shape(self, tensor: &'static str, expected: String, found: String) -> Error {
        Error::Shape {
            op: self.0,
            tensor,
            expected,
            found,
        }
    }

    fn sizes<const N: usize>(
        self,
        tensor: &'static str,
        expected: [usize; N],
        found: [usize; N],
    ) -> Result<()> {
        if expected == found {
            return Ok(());
        }
        let (expected, found) = (format!("shape {expected:?}"), format!("shape {found:?}"));
        Err(self.shape(tensor, expected, found))
    }

    /// How many sequences there are.
    fn sequences(self, batch: usize, cu_seqlens: Option<Layout<1>>) -> Result<usize> {
        let Some(Layout {
            shape: [starts], ..
        }) = cu_seqlens
        else {
            return Ok(batch);
        };
        if batch != 1 {
            let expected = "a batch of 1 with cu_seqlens".into();
            return Err(self.shape("x", expected, format!("a batch of {batch}")));
        }
        starts.checked_sub(1).ok_or_else(|| {
            let expected = "sequences + 1 elements".into();
            self.shape("cu_seqlens", expected, "no elements".into())
        })
    }

    fn heads_per_group(self, heads: usize, groups: usize) -> Result<usize> {
        if heads == 0 {
            return Ok(1);
        }
        let ratio = heads.checked_div(groups);
        ratio
            .filter(|ratio| ratio * groups == heads)
            .ok_or_else(|| {
                let expected = format!("a number of groups that divides the {heads} heads of x");
                self.shape("b", expected, format!("{groups} groups"))
            })
    }

    /// Refuses a size without a kernel.
    fn multiple(self, name: &str, size: usize, largest: usize) -> Result<()> {
        if size > 0 && size.is_multiple_of(COPY) && size <= largest {
            return Ok(());
        }
        Err(Error::Unsupported {
            op: self.0,
            request: format!("{name} {size}"),
            available: format!("each multiple of {COPY} up to {largest}"),
        })
    }

    fn at_most(self, tensor: &'static str, found: usize, most: usize, what: &str) -> Result<()> {
        if found <= most {
            return Ok(());
        }
        let expected = format!("at most {most} {what}");
        Err(self.shape(tensor, expected, format!("{found} {what}")))
    }

    fn config(self, config: Config) -> Result<()> {
        let (low, high) = config.dt_limit;
        let argument = |argument, expected: &str, found| Error::Argument {
            op: self.0,
            argument,
            expected: expected.into(),
            found,
        };
        // a NaN is in no order
        if !(low >= 0.0 && low <= high) {
            let expected = "two numbers in order, neither negative";
            return Err(argument("dt_limit", expected, format!("({low}, {high})")));
        }
        if config.segment == Some(0) {
            return Err(argument("segment", "at least one step", "0".into()));
        }
        Ok(())
    }

    /// Checks that all strides but the last are multiples of `multiple`, and that the last axis is
    /// contiguous if it has to be; returns the strides, 0 for axes of one element, which the kernels
    /// never step along.
    fn strides<const N: usize>(
        self,
        tensor: &'static str,
        layout: &Layout<N>,
        multiple: usize,
        contiguous: bool,
    ) -> Result<[i64; N]> {
        let mut strides = [0; N];
        for axis in (0..N).filter(|&axis| layout.shape[axis] > 1) {
            let stride = layout.strides[axis];
            let (fits, expected) = match contiguous && axis + 1 == N {
                true => (stride == 1, "a last stride of 1".into()),
                false => {
                    let expected = format!("strides that are multiples of {multiple} elements");
                    (stride.is_multiple_of(multiple), expected)
                }
            };
            let (true, Ok(stride)) = (fits, i64::try_from(stride)) else {
                return Err(Error::Layout {
                    op: self.0,
                    tensor,
                    expected,
                    found: format!("strides {:?}", layout.strides),
                });
            };
            strides[axis] = stride;
        }
        Ok(strides)
    }
}
