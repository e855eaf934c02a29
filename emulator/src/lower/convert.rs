//! Moves, conversions and address spaces.

use super::{Lowered, Lowerer, Modifiers, lanes};
use crate::ir::{Code, Convert, LaneOp, Rounding, Scalar, Small, Space};
use crate::syntax::Operand;

pub(super) fn mov<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 2)?;
    if m.take("pred") {
        let (a, negated) = l.predicate(&operands[1])?;
        return Ok(Code::MovePred {
            d: l.predicate_out(&operands[0])?,
            a,
            negated,
        });
    }
    let kind = m.scalar()?;
    let wide = kind.bytes() == 8;
    if let Operand::Vector(parts) = &operands[1] {
        let part_bytes = part_bytes(kind, parts.len())?;
        let parts = parts
            .iter()
            .map(|part| l.narrow(part))
            .collect::<Lowered<_>>()?;
        return Ok(Code::Pack {
            d: l.out(&operands[0], wide)?,
            parts,
            part_bytes,
        });
    }
    if let Operand::Vector(parts) = &operands[0] {
        let part_bytes = part_bytes(kind, parts.len())?;
        let parts = parts
            .iter()
            .map(|part| {
                if *part == Operand::Sink {
                    Ok(None)
                } else {
                    l.narrow_out(part).map(Some)
                }
            })
            .collect::<Lowered<_>>()?;
        return Ok(Code::Unpack {
            a: l.source(&operands[1], wide)?,
            parts,
            part_bytes,
        });
    }
    let clocks = [
        "%clock",
        "%clock64",
        "%clock_hi",
        "%globaltimer",
        "%globaltimer_lo",
    ];
    if matches!(&operands[1], Operand::Name(name) if clocks.contains(name)) {
        return Ok(Code::Clock {
            d: l.out(&operands[0], wide)?,
            wide,
        });
    }
    Ok(if wide {
        Code::Move64 {
            d: l.wide_out(&operands[0])?,
            a: l.wide(&operands[1])?,
        }
    } else {
        Code::Move32 {
            d: l.narrow_out(&operands[0])?,
            a: l.narrow(&operands[1])?,
        }
    })
}

/// Bytes of each part of a packed move.
fn part_bytes(kind: Scalar, parts: usize) -> Lowered<u8> {
    match (kind.bytes(), parts) {
        (8, 2) => Ok(4),
        (8, 4) | (4, 2) => Ok(2),
        (4, 4) | (2, 2) => Ok(1),
        (bytes, parts) => Err(format!("{bytes} bytes do not split into {parts} registers")),
    }
}

/// The rounding of a conversion, and whether the result is a whole number.
fn rounding(m: &mut Modifiers<'_>) -> (Rounding, bool) {
    let words = ["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"];
    match m.take_any(&words) {
        Some("rna") => (Rounding::NearestAway, false),
        Some("rz") => (Rounding::Zero, false),
        Some("rm") => (Rounding::Down, false),
        Some("rp") => (Rounding::Up, false),
        Some("rni") => (Rounding::Nearest, true),
        Some("rzi") => (Rounding::Zero, true),
        Some("rmi") => (Rounding::Down, true),
        Some("rpi") => (Rounding::Up, true),
        _ => (Rounding::Nearest, false),
    }
}

pub(super) fn cvt<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    if m.take("pack") {
        return pack(l, m, operands);
    }
    if m.rest().iter().any(|word| small(word).is_some()) {
        return convert_bytes(l, m, operands);
    }
    let to = m.first_scalar()?;
    let from = m.scalar()?;
    let (rounding, whole) = rounding(m);
    let (flush, saturate) = (m.take("ftz"), m.take("sat"));
    let (relu, finite) = (m.take("relu"), m.take("satfinite"));
    if matches!(to, Scalar::F16x2 | Scalar::Bf16x2) {
        return convert_pair(l, m, operands, (to, from), (rounding, relu, finite));
    }
    l.count(operands, 2)?;
    let known = match to {
        Scalar::Tf32 => {
            from == Scalar::F32 && !whole && !matches!(rounding, Rounding::Down | Rounding::Up)
        }
        _ => rounding != Rounding::NearestAway,
    };
    let source = !matches!(from, Scalar::F16x2 | Scalar::Bf16x2 | Scalar::Tf32);
    let restricted = !finite && !relu
        || from == Scalar::F32 && matches!(to, Scalar::F16 | Scalar::Bf16 | Scalar::Tf32);
    if !known || !source || !restricted {
        return Err(lanes::unknown(m));
    }
    let convert = Convert {
        to,
        from,
        rounding,
        whole,
        saturate,
        relu,
        finite,
        flush,
    };
    // the manual lets a register be wider than the integer that is read
    let a = match from.bytes() == 8 || from.is_float() {
        true => l.source(&operands[1], from.bytes() == 8)?,
        false => l.low(&operands[1])?,
    };
    Ok(Code::Convert {
        convert,
        d: l.out(&operands[0], to.bytes() == 8)?,
        a,
    })
}

/// Two f32 to two halves; the first goes up.
fn convert_pair<'t>(
    l: &mut Lowerer<'t>,
    m: &Modifiers<'_>,
    operands: &[Operand<'t>],
    (to, from): (Scalar, Scalar),
    (rounding, relu, finite): (Rounding, bool, bool),
) -> Lowered<Code> {
    l.count(operands, 3)?;
    if from != Scalar::F32 || !matches!(rounding, Rounding::Nearest | Rounding::Zero) {
        return Err(lanes::unknown(m));
    }
    if rounding == Rounding::Zero || finite {
        let small = match to {
            Scalar::F16x2 => Small::F16,
            _ => Small::Bf16,
        };
        let op = LaneOp::ConvertPair {
            to: small,
            rounding,
            relu,
            finite,
        };
        return lanes::words(l, operands, op, 2);
    }
    let (a, b) = (l.narrow(&operands[1])?, l.narrow(&operands[2])?);
    Ok(Code::ConvertPair {
        to,
        relu,
        d: l.narrow_out(&operands[0])?,
        a,
        b,
    })
}

/// A pair of 8-bit floats.
fn small(word: &str) -> Option<Small> {
    match word {
        "e4m3x2" => Some(Small::E4m3),
        "e5m2x2" => Some(Small::E5m2),
        _ => None,
    }
}

/// Conversions to and from pairs of 8-bit floats.
fn convert_bytes<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let from = m.last()?;
    let to = m.last()?;
    let nearest = m.take("rn");
    let (relu, finite) = (m.take("relu"), m.take("satfinite"));
    let (op, sources) = match (small(to), small(from), to, from) {
        (Some(to), _, _, "f32") if finite => {
            let op = LaneOp::ConvertPair {
                to,
                rounding: Rounding::Nearest,
                relu,
                finite,
            };
            (op, 2)
        }
        (Some(to), _, _, "f16x2") if finite => (LaneOp::ConvertHalves { to, relu }, 1),
        (_, Some(from), "f16x2", _) if !finite => (LaneOp::Widen { from, relu }, 1),
        _ => return Err(lanes::unknown(m)),
    };
    if !nearest {
        return Err(lanes::unknown(m));
    }
    lanes::words(l, operands, op, sources)
}

/// `cvt.pack.sat.to.from{.b32} d, a, b{, c}`
fn pack<'t>(l: &mut Lowerer<'t>, m: &mut Modifiers<'_>, operands: &[Operand<'t>]) -> Lowered<Code> {
    let keeps = m.take("b32");
    let from = m.last()?;
    let (bits, signed) = match m.last()? {
        "u8" => (8, false),
        "s8" => (8, true),
        "u16" => (16, false),
        "s16" => (16, true),
        "u4" => (4, false),
        "s4" => (4, true),
        "u2" => (2, false),
        "s2" => (2, true),
        _ => return Err(lanes::unknown(m)),
    };
    // a whole word of two halves has no room for a third operand, and everything narrower has it
    if !m.take("sat") || !matches!(from, "s32") || keeps != (bits < 16) {
        return Err(lanes::unknown(m));
    }
    let op = LaneOp::Pack {
        bits,
        signed,
        keeps,
    };
    lanes::words(l, operands, op, if keeps { 3 } else { 2 })
}

fn space(m: &mut Modifiers<'_>) -> Lowered<Space> {
    Ok(
        match m.take_any(&[
            "global",
            "const",
            "shared::cta",
            "shared::cluster",
            "shared",
            "local",
            "param::entry",
            "param",
        ]) {
            Some("global" | "const") => Space::Global,
            Some("shared::cta" | "shared::cluster" | "shared") => Space::Shared,
            Some("local") => Space::Local,
            Some(_) => Space::Param,
            None => return Err(format!("the opcode `{}` lacks a state space", m.opcode())),
        },
    )
}

pub(super) fn cvta<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 2)?;
    let wide = m.scalar()?.bytes() == 8;
    let to_space = m.take("to");
    let space = space(m)?;
    if !wide {
        return Err("cvta of 32-bit addresses is not emulated".into());
    }
    let (d, a) = (l.wide_out(&operands[0])?, l.wide(&operands[1])?);
    Ok(Code::AddressSpace {
        space,
        to_space,
        d,
        a,
    })
}

pub(super) fn is_space<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 2)?;
    let space = space(m)?;
    Ok(Code::IsSpace {
        space,
        d: l.predicate_out(&operands[0])?,
        a: l.wide(&operands[1])?,
    })
}
