//! Moves, conversions and address spaces.

use super::{Lowered, Lowerer, Modifiers};
use crate::ir::{Code, Convert, Rounding, Scalar, Space};
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

pub(super) fn cvt<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let to = m.first_scalar()?;
    let from = m.scalar()?;
    let (rounding, whole) =
        match m.take_any(&["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"]) {
            Some("rna") => (Rounding::NearestAway, false),
            Some("rz") => (Rounding::Zero, false),
            Some("rm") => (Rounding::Down, false),
            Some("rp") => (Rounding::Up, false),
            Some("rni") => (Rounding::Nearest, true),
            Some("rzi") => (Rounding::Zero, true),
            Some("rmi") => (Rounding::Down, true),
            Some("rpi") => (Rounding::Up, true),
            _ => (Rounding::Nearest, false),
        };
    let (flush, saturate) = (m.take("ftz"), m.take("sat"));
    let relu = m.take("relu");
    if matches!(to, Scalar::F16x2 | Scalar::Bf16x2) {
        l.count(operands, 3)?;
        if from != Scalar::F32 || rounding != Rounding::Nearest || saturate {
            return Err(format!(
                "the opcode `{}` is emulated only as .rn of .f32",
                m.opcode()
            ));
        }
        let (a, b) = (l.narrow(&operands[1])?, l.narrow(&operands[2])?);
        return Ok(Code::ConvertPair {
            to,
            relu,
            d: l.narrow_out(&operands[0])?,
            a,
            b,
        });
    }
    l.count(operands, 2)?;
    let known = match to {
        Scalar::Tf32 => {
            from == Scalar::F32 && !whole && !matches!(rounding, Rounding::Down | Rounding::Up)
        }
        _ => rounding != Rounding::NearestAway,
    };
    if !known {
        return Err(format!("the opcode `{}` is not emulated", m.opcode()));
    }
    let narrowing =
        to.is_float() && (from.is_float() || !to.is_float()) && to.bytes() < from.bytes();
    if to.is_float()
        && !whole
        && rounding != Rounding::Nearest
        && (narrowing || !from.is_float())
        && to != Scalar::F32
    {
        return Err(format!(
            "the opcode `{}` is emulated only with rounding to nearest",
            m.opcode()
        ));
    }
    if matches!(from, Scalar::F16x2 | Scalar::Bf16x2 | Scalar::Tf32) {
        return Err(format!(
            "the opcode `{}` is not emulated for this type",
            m.opcode()
        ));
    }
    let convert = Convert {
        to,
        from,
        rounding,
        whole,
        saturate,
        relu,
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
