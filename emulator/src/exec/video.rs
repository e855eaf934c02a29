//! Video instructions: arithmetic on bytes and half words of registers, with more bits inside than a register has.

use super::lanes::extend;
use crate::ir::{Cmp, LaneOp, Part, Second, Video, VideoOp, VideoParts};

fn part(word: u64, part: Part) -> i128 {
    extend(word >> part.start, part.bits, part.signed).into()
}

/// The least and greatest number of so many bits.
fn range(bits: u32, signed: bool) -> (i128, i128) {
    if signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

fn operate(op: VideoOp, a: i128, b: i128) -> i128 {
    let amount = |wrap: bool| if wrap { b & 31 } else { b.min(32) } as u32;
    match op {
        VideoOp::Add => a + b,
        VideoOp::Sub => a - b,
        VideoOp::AbsDiff => (a - b).abs(),
        VideoOp::Min => a.min(b),
        VideoOp::Max => a.max(b),
        VideoOp::Average => (a + b + i128::from(a + b >= 0)) >> 1,
        VideoOp::Shl { wrap } => a << amount(wrap),
        VideoOp::Shr { wrap } => a >> amount(wrap),
        VideoOp::Set(cmp) => i128::from(match cmp {
            Cmp::Eq => a == b,
            Cmp::Ne => a != b,
            Cmp::Lt => a < b,
            Cmp::Le => a <= b,
            Cmp::Gt => a > b,
            _ => a >= b,
        }),
    }
}

/// `vadd` and its like.
pub(super) fn scalar(video: &Video, a: u64, b: u64, c: u64) -> u64 {
    let mut value = operate(video.op, part(a, video.a), part(b, video.b));
    if video.saturate {
        let bits = match video.second {
            Second::Merge(part) => part.bits,
            _ => 32,
        };
        let (low, high) = range(bits, video.signed);
        value = value.clamp(low, high);
    }
    let word = |value: i128| i128::from(extend(value as u64, 32, video.signed));
    let other = word(c.into());
    match video.second {
        Second::None => value as u64,
        Second::Add => (value + other) as u64,
        Second::Min => word(value).min(other) as u64,
        Second::Max => word(value).max(other) as u64,
        Second::Merge(part) => {
            let keep = ((1u64 << part.bits) - 1) << part.start;
            c & !keep | (value as u64) << part.start & keep
        }
    }
}

/// `vmad`
pub(super) fn multiply_add(op: &LaneOp, a: u64, b: u64, c: u64) -> u64 {
    let &LaneOp::VideoMad {
        a: from_a,
        b: from_b,
        negate_product,
        negate_c,
        plus_one,
        saturate,
        shift,
    } = op
    else {
        return 0;
    };
    let signed = from_a.signed || from_b.signed || negate_product || negate_c;
    let product = part(a, from_a) * part(b, from_b);
    let product = if negate_product { -product } else { product };
    let other = i128::from(extend(c, 32, signed));
    let sum = product + if negate_c { -other } else { other } + i128::from(plus_one);
    let value = sum >> shift;
    if saturate {
        let (low, high) = range(32, signed);
        value.clamp(low, high) as u64
    } else {
        value as u64
    }
}

/// `vadd2`, `vadd4` and their like.
pub(super) fn parts(video: &VideoParts, a: u64, b: u64, c: u64) -> u32 {
    let bits = 32 / video.parts;
    let both = a | b << 32;
    let pick =
        |at: u8, signed: bool| i128::from(extend(both >> (bits * u32::from(at)), bits, signed));
    let keep = (1u32 << bits) - 1;
    let mut out = if video.accumulate { c as u32 } else { 0 };
    for at in 0..video.parts as usize {
        let shift = bits * at as u32;
        let mut value = operate(
            video.op,
            pick(video.pick_a[at], video.a_signed),
            pick(video.pick_b[at], video.b_signed),
        );
        if video.saturate {
            let (low, high) = range(bits, video.d_signed);
            value = value.clamp(low, high);
        }
        match (video.accumulate, video.mask[at]) {
            (true, true) => out = out.wrapping_add(value as u32),
            (true, false) => {}
            (false, true) => out |= (value as u32 & keep) << shift,
            (false, false) => out |= c as u32 & keep << shift,
        }
    }
    out
}
