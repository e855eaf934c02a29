//! Against the host's floats, neighbours and every small number.

use super::*;

fn f64s() -> Vec<f64> {
    let mut seed = 0x1234_5678_9abc_def0_u64;
    let mut out = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        f64::MAX,
        f64::MIN_POSITIVE,
        5e-324,
        f64::INFINITY,
        f64::NAN,
        1.0 + f64::EPSILON,
    ];
    for _ in 0..60 {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        out.push(f64::from_bits(seed));
        // near each other, so that sums cancel
        out.push(f64::from_bits(seed >> 12 | 1.0f64.to_bits()));
    }
    out
}

fn same(found: u64, expected: f64, what: &str) {
    let found = f64::from_bits(found);
    assert!(
        found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
        "{what}: {found:e} is not {expected:e}"
    );
}

#[test]
fn to_nearest_it_agrees_with_the_host() {
    let read = |x: f64| Exact::read(Format::F64, x.to_bits());
    let round = |x: Exact| x.round(Format::F64, Rounding::Nearest);
    for a in f64s() {
        same(round(read(a).root()), a.sqrt(), &format!("root of {a:e}"));
        let single = read(a).round(Format::F32, Rounding::Nearest) as u32;
        let expected = a as f32;
        assert!(
            single == expected.to_bits() || expected.is_nan(),
            "{a:e} as f32"
        );
        for b in f64s() {
            same(
                round(read(a).plus(read(b), false)),
                a + b,
                &format!("{a:e} + {b:e}"),
            );
            same(
                round(read(a).times(read(b))),
                a * b,
                &format!("{a:e} * {b:e}"),
            );
            same(
                round(read(a).over(read(b))),
                a / b,
                &format!("{a:e} / {b:e}"),
            );
            let c = b - a;
            let fused = read(a).times(read(b)).plus(read(c), false);
            same(
                round(fused),
                a.mul_add(b, c),
                &format!("{a:e} * {b:e} + {c:e}"),
            );
        }
    }
}

#[test]
fn directions_end_at_neighbours() {
    let third = Exact::whole(1).over(Exact::whole(3));
    let bits = |rounding| f64::from_bits(third.round(Format::F64, rounding));
    assert_eq!(bits(Rounding::Down).next_up(), bits(Rounding::Up));
    assert_eq!(bits(Rounding::Down), bits(Rounding::Zero));
    let large = Exact::whole(70_000);
    assert_eq!(large.round(Format::F16, Rounding::Nearest), 0x7c00);
    assert_eq!(large.round(Format::F16, Rounding::Down), 0x7bff);
    assert_eq!(large.round_finite(Format::F16, Rounding::Nearest), 0x7bff);
    assert_eq!(
        large.negate().round_finite(Format::E4M3, Rounding::Nearest),
        0xfe
    );
    assert_eq!(
        Exact::whole(464).round(Format::E4M3, Rounding::Nearest),
        0x7e
    );
    assert_eq!(
        Exact::whole(465).round(Format::E4M3, Rounding::Nearest),
        0x7f
    );
}

#[test]
fn every_small_number_is_read_as_it_is_written() {
    for (format, last) in [
        (Format::F16, 0xffff),
        (Format::BF16, 0xffff),
        (Format::E4M3, 0xff),
        (Format::E5M2, 0xff),
    ] {
        for bits in 0..=last {
            let value = Exact::read(format, bits);
            if value != Nan {
                assert_eq!(value.round(format, Rounding::Nearest), bits);
            }
        }
    }
}
