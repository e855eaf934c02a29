//! wgmma: products by a warpgroup.

use super::{Lowered, Lowerer, Modifiers};
use crate::ir::{Accumulator, Code, Hopper, MatrixElement, Slot, Wgmma, WgmmaSource};
use crate::syntax::Operand;

/// `wgmma.*`
pub(super) fn wgmma<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let unknown = format!("the opcode `{}` is not emulated", m.opcode());
    if !(m.take("sync") && m.take("aligned")) {
        return Err(unknown);
    }
    let op = match m.take_any(&["mma_async", "fence", "commit_group", "wait_group"]) {
        Some("mma_async") => return multiply(l, m, operands),
        Some("fence") => Hopper::WgmmaFence,
        Some("commit_group") => Hopper::WgmmaCommit,
        Some(_) => match operands {
            [Operand::Integer(pending @ 0..=0x7fff_ffff)] => Hopper::WgmmaWait {
                pending: *pending as u32,
            },
            _ => return Err("takes the number of groups that may be in flight".into()),
        },
        None => return Err(unknown),
    };
    if !matches!(op, Hopper::WgmmaWait { .. }) {
        l.count(operands, 0)?;
    }
    Ok(Code::hopper(op))
}

fn element(word: &str) -> Option<MatrixElement> {
    Some(match word {
        "f16" => MatrixElement::F16,
        "bf16" => MatrixElement::Bf16,
        "tf32" => MatrixElement::Tf32,
        "e4m3" => MatrixElement::E4m3,
        "e5m2" => MatrixElement::E5m2,
        "s8" => MatrixElement::S8,
        "u8" => MatrixElement::U8,
        _ => return None,
    })
}

/// N and K of `m64n…k…`.
fn shape(word: &str) -> Option<(u16, u16)> {
    let (n, k) = word.strip_prefix("m64n")?.split_once('k')?;
    Some((n.parse().ok()?, k.parse().ok()?))
}

/// `wgmma.mma_async.sync.aligned.m64nNkK.D.A.B`
fn multiply<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let unknown = format!("the opcode `{}` is not emulated", m.opcode());
    let saturate = m.take("satfinite");
    let (b, a, d) = (m.last()?, m.last()?, m.last()?);
    let (Some(a_kind), Some(b_kind)) = (element(a), element(b)) else {
        return Err(unknown);
    };
    let Some((n, k)) = m.last().ok().and_then(shape) else {
        return Err(unknown);
    };
    use MatrixElement::{Bf16, E4m3, E5m2, F16, S8, Tf32, U8};
    let accumulator = match (d, a_kind, b_kind) {
        ("f32", F16, F16) | ("f32", Bf16, Bf16) | ("f32", Tf32, Tf32) => Accumulator::F32,
        ("f32", E4m3 | E5m2, E4m3 | E5m2) => Accumulator::F32,
        ("f16", F16, F16) | ("f16", E4m3 | E5m2, E4m3 | E5m2) => Accumulator::F16,
        ("s32", S8 | U8, S8 | U8) => Accumulator::S32,
        _ => return Err(unknown),
    };
    let integer = accumulator == Accumulator::S32;
    let n_exists =
        (8..=256).contains(&n) && n % 8 == 0 && (!integer || n == 8 || n == 24 || n % 16 == 0);
    if usize::from(k) * a_kind.bytes() != 32 || !n_exists || (saturate && !integer) {
        return Err(unknown);
    }
    let halves = matches!(a_kind, F16 | Bf16);
    let a_in_registers = matches!(operands.get(1), Some(Operand::Vector(_)));
    let wanted = match (integer, halves, a_in_registers) {
        (true, ..) => 4,
        (false, true, false) => 8,
        (false, true, true) => 7,
        (false, false, _) => 6,
    };
    l.count(operands, wanted)?;
    let count = usize::from(n)
        / if accumulator == Accumulator::F16 {
            4
        } else {
            2
        };
    let Operand::Vector(items) = &operands[0] else {
        return Err(format!("takes a vector of {count} registers"));
    };
    if items.len() != count {
        return Err(format!(
            "takes a vector of {count} registers, found {}",
            items.len()
        ));
    }
    let d: Vec<Slot> = items
        .iter()
        .map(|item| l.narrow_out(item))
        .collect::<Lowered<_>>()?;
    let a = if a_in_registers {
        WgmmaSource::Registers(l.registers(&operands[1], false)?)
    } else {
        WgmmaSource::Descriptor(l.wide(&operands[1])?)
    };
    let b = l.wide(&operands[2])?;
    let scale_d = l.predicate(&operands[3])?;
    let mut rest = operands[4..].iter();
    let mut choice = |of: [i64; 2]| match rest.next() {
        None => Ok(false),
        Some(Operand::Integer(value)) if *value == of[0] => Ok(false),
        Some(Operand::Integer(value)) if *value == of[1] => Ok(true),
        Some(_) => Err(format!("an immediate is neither {} nor {}", of[0], of[1])),
    };
    let (negate_a, negate_b) = (choice([1, -1])?, choice([1, -1])?);
    let a_transposed = !a_in_registers && choice([0, 1])?;
    let b_transposed = choice([0, 1])?;
    l.shared_access(16);
    Ok(Code::hopper(Hopper::Wgmma(Wgmma {
        n,
        k,
        a_kind,
        b_kind,
        accumulator,
        saturate,
        d,
        a,
        b,
        scale_d,
        negate_a,
        negate_b,
        a_transposed,
        b_transposed,
    })))
}
