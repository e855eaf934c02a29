//! Video instructions: their operands name bytes and half words of registers.

use super::arithmetic::is_signed;
use super::lanes::{code, unknown};
use super::{Lowered, Lowerer, Modifiers};
use crate::ir::{Cmp, Code, LaneOp, Part, Second, Source, Target, Video, VideoOp, VideoParts};
use crate::syntax::Operand;

/// A register and the selector behind its dot.
fn split<'t>(operand: &Operand<'t>) -> (Operand<'t>, Option<&'t str>) {
    match operand {
        Operand::Name(name) | Operand::Minus(name) => match name.split_once('.') {
            Some((register, selector)) => (Operand::Name(register), Some(selector)),
            None => (Operand::Name(name), None),
        },
        other => (other.clone(), None),
    }
}

/// `b0` to `b3`, `h0` and `h1`; the whole word without a selector.
fn part(selector: Option<&str>, signed: bool) -> Lowered<Part> {
    let wrong = || {
        format!(
            "`.{}` is not a part of a register",
            selector.unwrap_or_default()
        )
    };
    let (start, bits) = match selector {
        None => (0, 32),
        Some(word) => {
            let (bits, count) = match word.as_bytes().first() {
                Some(b'b') => (8, 4),
                Some(b'h') => (16, 2),
                _ => return Err(wrong()),
            };
            let at: u32 = word[1..].parse().map_err(|_| wrong())?;
            if at >= count {
                return Err(wrong());
            }
            (at * bits, bits)
        }
    };
    Ok(Part {
        start,
        bits,
        signed,
    })
}

fn operation(m: &mut Modifiers<'_>, stem: &str) -> Lowered<VideoOp> {
    let wraps = |m: &mut Modifiers<'_>| match m.take_any(&["wrap", "clamp"]) {
        Some(word) => Ok(word == "wrap"),
        None => Err(format!("the opcode `{}` lacks .wrap or .clamp", m.opcode())),
    };
    Ok(match stem {
        "vadd" => VideoOp::Add,
        "vsub" => VideoOp::Sub,
        "vabsdiff" => VideoOp::AbsDiff,
        "vmin" => VideoOp::Min,
        "vmax" => VideoOp::Max,
        "vavrg" => VideoOp::Average,
        "vshl" => VideoOp::Shl { wrap: wraps(m)? },
        "vshr" => VideoOp::Shr { wrap: wraps(m)? },
        _ => VideoOp::Set(match m.take_any(&["eq", "ne", "lt", "le", "gt", "ge"]) {
            Some("eq") => Cmp::Eq,
            Some("ne") => Cmp::Ne,
            Some("lt") => Cmp::Lt,
            Some("le") => Cmp::Le,
            Some("gt") => Cmp::Gt,
            Some(_) => Cmp::Ge,
            None => return Err(format!("the opcode `{}` lacks a comparison", m.opcode())),
        }),
    })
}

/// The signs of d, a and b: the types in that order, of which `vset` lacks the first.
fn signs(m: &mut Modifiers<'_>, op: VideoOp) -> Lowered<[bool; 3]> {
    let d = match op {
        VideoOp::Set(_) => false,
        _ => is_signed(m.first_scalar()?),
    };
    Ok([
        d,
        is_signed(m.first_scalar()?),
        is_signed(m.first_scalar()?),
    ])
}

pub(super) fn scalar<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let op = operation(m, m.mnemonic)?;
    let [signed, a_signed, b_signed] = signs(m, op)?;
    let saturate = m.take("sat");
    let second = m.take_any(&["add", "min", "max"]);
    let Some(d) = operands.first().map(split) else {
        return Err("takes a destination".into());
    };
    let second = match (second, d.1) {
        (Some(_), Some(_)) => return Err(unknown(m)),
        (Some("add"), None) => Second::Add,
        (Some("min"), None) => Second::Min,
        (Some(_), None) => Second::Max,
        (None, Some(selector)) => Second::Merge(part(Some(selector), signed)?),
        (None, None) => Second::None,
    };
    l.count(operands, if second == Second::None { 3 } else { 4 })?;
    let (a, b) = (split(&operands[1]), split(&operands[2]));
    let mut sources = vec![
        Source::Narrow(l.narrow(&a.0)?),
        Source::Narrow(l.narrow(&b.0)?),
    ];
    if let Some(c) = operands.get(3) {
        sources.push(Source::Narrow(l.narrow(c)?));
    }
    let video = Video {
        op,
        a: part(a.1, a_signed)?,
        b: part(b.1, b_signed)?,
        signed,
        saturate,
        second,
    };
    let to = Target::Narrow(l.narrow_out(&d.0)?);
    Ok(code(LaneOp::Video(video), to, sources))
}

pub(super) fn multiply_add<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 4)?;
    m.first_scalar()?;
    let a_signed = is_signed(m.first_scalar()?);
    let b_signed = is_signed(m.first_scalar()?);
    let shift = match m.take_any(&["shr7", "shr15"]) {
        Some("shr7") => 7,
        Some(_) => 15,
        None => 0,
    };
    let minus = |operand: &Operand<'t>| matches!(operand, Operand::Minus(_));
    let (a, b, c) = (
        split(&operands[1]),
        split(&operands[2]),
        split(&operands[3]),
    );
    let op = LaneOp::VideoMad {
        a: part(a.1, a_signed)?,
        b: part(b.1, b_signed)?,
        negate_product: minus(&operands[1]) != minus(&operands[2]),
        negate_c: minus(&operands[3]),
        plus_one: m.take("po"),
        saturate: m.take("sat"),
        shift,
    };
    let to = Target::Narrow(l.narrow_out(&operands[0])?);
    let mut sources = Vec::new();
    for operand in [&a.0, &b.0, &c.0] {
        sources.push(Source::Narrow(l.narrow(operand)?));
    }
    Ok(code(op, to, sources))
}

/// The parts that a selector of a source lists, from the highest: `h10`, `b7654`.
fn picks(selector: Option<&str>, parts: u32, first: u8) -> Lowered<[u8; 4]> {
    let Some(word) = selector else {
        return Ok(std::array::from_fn(|at| first + at as u8));
    };
    let letter = if parts == 2 { 'h' } else { 'b' };
    let digits: Vec<u8> = word
        .strip_prefix(letter)
        .map(|digits| {
            digits
                .bytes()
                .rev()
                .map(|digit| digit.wrapping_sub(b'0'))
                .collect()
        })
        .unwrap_or_default();
    if digits.len() != parts as usize || digits.iter().any(|&at| u32::from(at) >= 2 * parts) {
        return Err(format!("`.{word}` does not select {parts} parts"));
    }
    let mut out = [0; 4];
    out[..digits.len()].copy_from_slice(&digits);
    Ok(out)
}

/// The parts that a selector of the destination names.
fn mask(selector: Option<&str>, parts: u32) -> Lowered<[bool; 4]> {
    let Some(word) = selector else {
        return Ok([true; 4]);
    };
    let letter = if parts == 2 { 'h' } else { 'b' };
    let wrong = || format!("`.{word}` is not a mask of {parts} parts");
    let mut out = [false; 4];
    for digit in word.strip_prefix(letter).ok_or_else(wrong)?.bytes() {
        let at = usize::from(digit.wrapping_sub(b'0'));
        if at >= parts as usize {
            return Err(wrong());
        }
        out[at] = true;
    }
    Ok(out)
}

pub(super) fn parts<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 4)?;
    let (stem, count) = m.mnemonic.split_at(m.mnemonic.len() - 1);
    let parts = if count == "2" { 2 } else { 4 };
    let op = operation(m, stem)?;
    let [d_signed, a_signed, b_signed] = signs(m, op)?;
    let (d, a, b) = (
        split(&operands[0]),
        split(&operands[1]),
        split(&operands[2]),
    );
    let saturate = m.take("sat");
    let video = VideoParts {
        op,
        parts,
        d_signed,
        a_signed,
        b_signed,
        pick_a: picks(a.1, parts, 0)?,
        pick_b: picks(b.1, parts, parts as u8)?,
        mask: mask(d.1, parts)?,
        saturate,
        accumulate: m.take("add"),
    };
    if video.accumulate && saturate {
        return Err(unknown(m));
    }
    let to = Target::Narrow(l.narrow_out(&d.0)?);
    let mut sources = Vec::new();
    for operand in [&a.0, &b.0, &operands[3]] {
        sources.push(Source::Narrow(l.narrow(operand)?));
    }
    Ok(code(LaneOp::VideoParts(video), to, sources))
}
