//! Gradients, each compared with the reference, which finite differences confirm.

use half::{bf16, f16};

use super::{Across, Case, Steps, Weight, check};

/// In every type.
fn check_all(case: Case) {
    check::<f16>(case);
    check::<bf16>(case);
    check::<f32>(case);
}

#[test]
fn a_mamba_layer() {
    check_all(Case::of(2, 64, 64, 16));
    check_all(Case::of(2, 64, 64, 16).across());
    check_all(Case::bare(1, 64, 64, 16));
}

/// Around the tiles of 8 and 16 steps.
#[test]
fn every_length() {
    for seqlen in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65] {
        check::<f16>(Case::of(2, 12, seqlen, 16));
        check::<bf16>(Case::of(1, 12, seqlen, 16).across().reversed());
        check::<f32>(Case::of(1, 5, seqlen, 16).reversed());
    }
}

#[test]
fn every_number_of_channels() {
    for dim in [1, 7, 8, 9, 16, 33, 63, 64, 65, 130] {
        check::<f16>(Case::of(1, dim, 20, 16));
        check::<f32>(Case::of(1, dim, 20, 16).across());
    }
}

#[test]
fn every_state_size() {
    for dstate in [1, 2, 3, 4, 5, 8, 12, 16, 17, 32, 50, 64, 65, 128, 200, 256] {
        let case = Case::of(1, 20, 20, dstate);
        check::<bf16>(case);
        check::<f16>(case.across());
        check::<f32>(case.reversed());
    }
}

#[test]
fn complex_numbers() {
    for dstate in [1, 2, 7, 16, 32, 33, 128] {
        let case = Case::of(1, 20, 20, dstate).complex();
        check::<f16>(case);
        check::<f32>(case.across());
        check::<bf16>(case.reversed());
    }
}

#[test]
fn constant_coefficients() {
    for dstate in [1, 16, 40, 64, 100, 256] {
        for (b, c) in [(None, None), (None, Some(Steps)), (Some(Across), None)] {
            let case = Case {
                b,
                c,
                ..Case::of(2, 20, 20, dstate)
            };
            check::<f16>(case);
            if dstate <= 128 {
                check::<f32>(case.complex());
            }
        }
    }
}

#[test]
fn groups() {
    for (dim, groups) in [(128, 2), (24, 3), (40, 40), (130, 2)] {
        let case = Case {
            groups,
            ..Case::of(2, dim, 20, 16)
        };
        check::<f16>(case);
        check::<f32>(case.across());
    }
}

#[test]
fn any_layout() {
    for (padding, shift) in [(0, 1), (1, 0), (4, 4), (3, 5)] {
        let case = Case {
            padding,
            shift,
            ..Case::of(2, 24, 40, 16)
        };
        check_all(case);
        check_all(case.across());
        check::<f16>(case.across().reversed());
    }
    for (elements, b, c) in [
        (Steps, Across, Steps),
        (Across, Steps, Steps),
        (Steps, Across, Across),
    ] {
        let case = Case {
            elements,
            b: Some(b),
            c: Some(c),
            ..Case::of(2, 24, 40, 16)
        };
        check_all(case);
    }
}

#[test]
fn each_option_alone() {
    let bare = Case::bare(1, 20, 30, 16);
    let softplus = Case::of(1, 20, 30, 16).config;
    for case in [
        Case {
            config: softplus,
            ..bare
        },
        Case {
            d: Some(Weight::Same),
            delta_bias: Some(Weight::Same),
            config: softplus,
            ..bare
        },
        Case { z: true, ..bare },
        Case {
            states: true,
            ..bare
        },
        Case {
            checkpoints: true,
            ..bare
        },
    ] {
        check::<f16>(case);
        check::<f32>(case);
    }
}

#[test]
fn sequences_of_different_lengths() {
    for cu_seqlens in [
        &[0, 50] as &[i32],
        &[0, 5, 5, 37, 50],
        &[0, 0, 1, 2, 34, 36, 50, 50],
        &[0, 16, 32, 48, 50],
    ] {
        let case = Case {
            cu_seqlens: Some(cu_seqlens),
            ..Case::of(1, 20, 50, 16)
        };
        check_all(case);
        check_all(case.across().reversed());
        check::<f16>(case.segments(3));
        check::<f32>(case.segments(2).reversed());
        check::<bf16>(case.complex());
        check::<f16>(Case {
            checkpoints: true,
            ..case
        });
        check::<f32>(Case {
            checkpoints: true,
            ..case.reversed()
        });
    }
}

#[test]
fn segments() {
    for segments in [1, 2, 3, 5] {
        for seqlen in [1, 31, 100] {
            let case = Case::of(2, 20, seqlen, 16).segments(segments);
            check::<f16>(case);
            check::<f32>(case.reversed());
            check::<bf16>(Case {
                checkpoints: true,
                ..case.across()
            });
            check::<f32>(case.complex());
        }
    }
}

#[test]
fn nothing_to_differentiate() {
    check::<f16>(Case::of(2, 20, 0, 16));
    check::<f32>(Case::of(0, 20, 30, 16));
    check::<f32>(Case::of(2, 0, 30, 16));
    check::<f16>(Case::of(2, 20, 0, 16).segments(3));
}
