//! Tensor maps that a kernel makes: `tensormap.replace` and `tensormap.cp_fenceproxy`.

use super::{Lowered, Lowerer, Modifiers, memory};
use crate::ir::{Code, Hopper, MapField, Space};
use crate::syntax::Operand;
use crate::tensor_map::{TENSOR_MAP_BYTES, TensorType};

fn unknown<T>(m: &Modifiers<'_>) -> Lowered<T> {
    Err(format!("the opcode `{}` is not emulated", m.opcode()))
}

/// `tensormap.*`
pub(super) fn tensor_map<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    if m.take("replace") {
        replace(l, m, operands)
    } else if m.take("cp_fenceproxy") {
        copy(l, m, operands)
    } else {
        unknown(m)
    }
}

/// `tensormap.replace.tile.field{.space}.b1024.type [address], {dimension,} value`
fn replace<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let field = m.take_any(&[
        "global_address",
        "rank",
        "box_dim",
        "global_dim",
        "global_stride",
        "element_stride",
        "elemtype",
        "interleave_layout",
        "swizzle_mode",
        "swizzle_atomicity",
        "fill_mode",
    ]);
    let Some(field) = field else {
        return unknown(m);
    };
    let wide = matches!(field, "global_address" | "global_stride");
    let typed = m.take(if wide { "b64" } else { "b32" });
    if !(m.take("tile") && m.take("b1024") && typed) {
        return unknown(m);
    }
    let space = memory::space(m);
    if !matches!(space, Space::Global | Space::Shared | Space::Generic) {
        return unknown(m);
    }
    let field = match field {
        "global_address" => {
            l.count(operands, 2)?;
            MapField::Address(l.wide(&operands[1])?)
        }
        "rank" => {
            l.count(operands, 2)?;
            MapField::Rank(l.narrow(&operands[1])?)
        }
        "box_dim" | "global_dim" | "global_stride" | "element_stride" => {
            l.count(operands, 3)?;
            let dimensions = if wide { 4 } else { 5 };
            let dimension = match operands[1] {
                Operand::Integer(at) if (0..dimensions).contains(&at) => at as usize,
                _ => return Err(format!("takes a dimension from 0 to {}", dimensions - 1)),
            };
            let value = l.source(&operands[2], wide)?;
            match field {
                "box_dim" => MapField::Box(dimension, value),
                "global_dim" => MapField::Size(dimension, value),
                "global_stride" => MapField::Stride(dimension, value),
                _ => MapField::Step(dimension, value),
            }
        }
        _ => {
            l.count(operands, 2)?;
            mode(field, &operands[1])?
        }
    };
    l.shared_access(16);
    Ok(Code::hopper(Hopper::ReplaceMap {
        at: memory::located(l, &operands[0], space)?,
        field,
    }))
}

/// The fields whose values are written into the instruction.
fn mode(field: &str, value: &Operand<'_>) -> Lowered<MapField> {
    let Operand::Integer(value) = *value else {
        return Err(format!("takes a number as its {field}"));
    };
    let known = match (field, value) {
        // unlike in CUtensorMapDataType, f32.ftz comes before f64 and bf16
        ("elemtype", 0..=7 | 11..=12) => {
            TensorType::from_number(value as u32).map(MapField::Element)
        }
        ("elemtype", 8) => Some(MapField::Element(TensorType::F32Ftz)),
        ("elemtype", 9) => Some(MapField::Element(TensorType::F64)),
        ("elemtype", 10) => Some(MapField::Element(TensorType::Bf16)),
        ("swizzle_mode", 0) => Some(MapField::Swizzle(0)),
        ("swizzle_mode", 1..=3) => Some(MapField::Swizzle(16 << value)),
        ("fill_mode", 0 | 1) => Some(MapField::NanFill(value == 1)),
        ("interleave_layout" | "swizzle_atomicity", 0) => Some(MapField::Fixed),
        _ => None,
    };
    known.ok_or_else(|| format!("the {field} {value} of a tensor map is not emulated"))
}

/// `tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.scope.sync.aligned [to], [from], 128`
fn copy<'t>(l: &mut Lowerer<'t>, m: &mut Modifiers<'_>, operands: &[Operand<'t>]) -> Lowered<Code> {
    l.count(operands, 3)?;
    let words = [
        "global",
        "shared::cta",
        "tensormap::generic",
        "release",
        "sync",
        "aligned",
    ];
    if !words.iter().all(|word| m.take(word))
        || m.take_any(&["cta", "cluster", "gpu", "sys"]).is_none()
    {
        return unknown(m);
    }
    if operands[2] != Operand::Integer(TENSOR_MAP_BYTES as i64) {
        return Err(format!("copies {TENSOR_MAP_BYTES} bytes"));
    }
    l.shared_access(16);
    Ok(Code::hopper(Hopper::CopyMap {
        to: memory::located(l, &operands[0], Space::Global)?,
        from: memory::located(l, &operands[1], Space::Shared)?,
    }))
}

/// `fence.proxy.tensormap::generic.{acquire,release}.scope {[address], 128}`: it orders nothing that is judged here.
pub(super) fn fence<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let word = m.take_any(&["acquire", "release"]);
    if m.take_any(&["cta", "cluster", "gpu", "sys"]).is_none() {
        return unknown(m);
    }
    match word {
        Some("acquire") => {
            l.count(operands, 2)?;
            memory::located(l, &operands[0], Space::Generic)?;
            if operands[1] != Operand::Integer(TENSOR_MAP_BYTES as i64) {
                return Err(format!("fences {TENSOR_MAP_BYTES} bytes"));
            }
        }
        Some(_) => l.count(operands, 0)?,
        None => return unknown(m),
    }
    Ok(Code::Fence(None))
}
