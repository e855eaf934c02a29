//! Matrix instructions: ldmatrix, stmatrix, movmatrix and mma.

use super::lanes::unknown;
use super::memory::items;
use super::{Lowered, Lowerer, Modifiers};
use crate::ir::{BitProduct, Code, Collective, Element, Matrix, Mma, Product, Scalar, Slot};
use crate::syntax::Operand;

fn matrix<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    address: &Operand<'t>,
    registers: &Operand<'t>,
    load: bool,
) -> Lowered<Matrix> {
    let count = match m.take_any(&["x1", "x2", "x4"]) {
        Some("x1") => 1,
        Some("x2") => 2,
        Some(_) => 4,
        None => return Err(format!("the opcode `{}` lacks a count", m.opcode())),
    };
    if !(m.take("sync") && m.take("aligned") && m.take("m8n8") && m.take("b16")) {
        return Err(format!("the opcode `{}` is not emulated", m.opcode()));
    }
    m.take_any(&["shared::cta", "shared"]);
    let transposed = m.take("trans");
    let address = l.address(address)?;
    l.shared_access(16);
    let items = items(registers);
    if items.len() != count {
        return Err(format!(
            "takes a vector of {count} registers, found {}",
            items.len()
        ));
    }
    let registers = items
        .into_iter()
        .map(|item| {
            if load {
                l.narrow_out(item)
            } else {
                l.narrow(item)
            }
        })
        .collect::<Lowered<_>>()?;
    Ok(Matrix {
        address: address.slot,
        narrow: address.narrow,
        offset: address.offset,
        transposed,
        registers,
    })
}

pub(super) fn load_matrix<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 2)?;
    Ok(Code::LoadMatrix(Box::new(matrix(
        l,
        m,
        &operands[1],
        &operands[0],
        true,
    )?)))
}

pub(super) fn store_matrix<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 2)?;
    Ok(Code::StoreMatrix(Box::new(matrix(
        l,
        m,
        &operands[0],
        &operands[1],
        false,
    )?)))
}

/// `mma.sync.aligned.m16n8k{8,16}.row.col.{f32,f16}.AB.AB.{f32,f16}`
pub(super) fn mma<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 4)?;
    let halves = |word: &str| matches!(word, "f16" | "bf16");
    let hot = m
        .rest()
        .iter()
        .any(|word| matches!(*word, "m16n8k16" | "m16n8k8"));
    if !hot
        || !m.rest().iter().any(|word| halves(word))
        || m.rest().contains(&"e4m3")
        || m.rest().contains(&"e5m2")
    {
        return product(l, m, operands);
    }
    let unknown = unknown(m);
    let (c_kind, b_kind, a_kind, d_kind) = (m.scalar()?, m.scalar()?, m.scalar()?, m.scalar()?);
    if !(m.take("sync") && m.take("aligned") && m.take("row") && m.take("col"))
        || a_kind != b_kind
        || c_kind != d_kind
    {
        return Err(unknown);
    }
    let k = match m.take_any(&["m16n8k16", "m16n8k8"]) {
        Some("m16n8k16") => 16,
        Some(_) => 8,
        None => return Err(unknown),
    };
    let half_accumulator = match (a_kind, d_kind) {
        (Scalar::F16 | Scalar::Bf16, Scalar::F32) => false,
        (Scalar::F16, Scalar::F16) => true,
        _ => return Err(unknown),
    };
    let mut out = Mma {
        kind: a_kind,
        k,
        half_accumulator,
        d: [0; 4],
        a: [0; 4],
        b: [0; 2],
        c: [0; 4],
    };
    if half_accumulator {
        out.d[..2].copy_from_slice(&l.registers::<2>(&operands[0], true)?);
        out.c[..2].copy_from_slice(&l.registers::<2>(&operands[3], false)?);
    } else {
        out.d = l.registers(&operands[0], true)?;
        out.c = l.registers(&operands[3], false)?;
    }
    if k == 16 {
        out.a = l.registers(&operands[1], false)?;
        out.b = l.registers(&operands[2], false)?;
    } else {
        out.a[..2].copy_from_slice(&l.registers::<2>(&operands[1], false)?);
        out.b[..1].copy_from_slice(&l.registers::<1>(&operands[2], false)?);
    }
    Ok(Code::Mma(Box::new(out)))
}

/// The types of elements that are packed in registers.
fn element(word: &str) -> Option<Element> {
    Some(match word {
        "f16" => Element::F16,
        "tf32" => Element::Tf32,
        "f64" => Element::F64,
        "e4m3" => Element::E4m3,
        "e5m2" => Element::E5m2,
        "u8" => Element::Integer {
            bits: 8,
            signed: false,
        },
        "s8" => Element::Integer {
            bits: 8,
            signed: true,
        },
        "u4" => Element::Integer {
            bits: 4,
            signed: false,
        },
        "s4" => Element::Integer {
            bits: 4,
            signed: true,
        },
        "b1" => Element::Bit,
        _ => return None,
    })
}

/// Rows, depth and the elements of A and B, and the accumulator: what `mma` takes beside the common halves.
fn is_product(shape: &str, a: Element, b: Element, accumulator: Scalar) -> bool {
    use Element::{Bit, E4m3, E5m2, F16, F64, Integer, Tf32};
    let shapes: &[&str] = match (a, b, accumulator) {
        (F16, F16, Scalar::F16 | Scalar::F32) => &["m8n8k4"],
        (Tf32, Tf32, Scalar::F32) => &["m16n8k4", "m16n8k8"],
        (F64, F64, Scalar::F64) => &["m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"],
        (E4m3 | E5m2, E4m3 | E5m2, Scalar::F16 | Scalar::F32) => &["m16n8k16", "m16n8k32"],
        (Integer { bits: 8, .. }, Integer { bits: 8, .. }, Scalar::S32) => {
            &["m8n8k16", "m16n8k16", "m16n8k32"]
        }
        (Integer { bits: 4, .. }, Integer { bits: 4, .. }, Scalar::S32) => {
            &["m8n8k32", "m16n8k32", "m16n8k64"]
        }
        (Bit, Bit, Scalar::S32) => &["m8n8k128", "m16n8k128", "m16n8k256"],
        _ => &[],
    };
    shapes.contains(&shape)
}

/// Rows and depth of `m16n8k32` and its like.
fn shape_of(word: &str) -> Option<(u32, u32)> {
    let (rows, depth) = word.strip_prefix('m')?.split_once("n8k")?;
    Some((rows.parse().ok()?, depth.parse().ok()?))
}

/// Every other dense product.
fn product<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    let bits = match (m.take("popc"), m.take_any(&["xor", "and"])) {
        (true, Some("xor")) => BitProduct::Xor,
        (true, Some(_)) => BitProduct::And,
        _ => BitProduct::None,
    };
    let (c, b, a, d) = (m.last()?, m.last()?, m.last()?, m.last()?);
    let shape = m
        .rest()
        .iter()
        .copied()
        .find(|word| shape_of(word).is_some());
    let known = match (element(a), element(b), super::modifiers::scalar(d), shape) {
        (Some(a), Some(b), Some(accumulator), Some(shape))
            if is_product(shape, a, b, accumulator)
                && (a == Element::Bit) == (bits != BitProduct::None) =>
        {
            shape_of(shape).map(|(rows, depth)| (a, b, accumulator, rows, depth, shape))
        }
        _ => None,
    };
    let Some((a, b, accumulator, rows, depth, shape)) = known else {
        return Err(unknown(m));
    };
    m.take(shape);
    // C of m8n8k4 may have a type of its own
    let source = super::modifiers::scalar(c);
    let quads = a == Element::F16;
    let fits =
        source == Some(accumulator) || quads && matches!(source, Some(Scalar::F16 | Scalar::F32));
    let order = |m: &mut Modifiers<'_>| m.take_any(&["row", "col"]) == Some("row");
    let (a_rows, b_columns) = match quads {
        // the layouts stand in order: take_any would find the rows first
        true => {
            let words: Vec<bool> = m
                .rest()
                .iter()
                .filter(|word| matches!(**word, "row" | "col"))
                .map(|word| *word == "row")
                .collect();
            let [a, b] = words[..] else {
                return Err(unknown(m));
            };
            order(m);
            order(m);
            (a, !b)
        }
        false => (m.take("row"), m.take("col")),
    };
    let saturate = accumulator == Scalar::S32 && m.take("satfinite");
    if !(m.take("sync") && m.take("aligned") && fits && (quads || a_rows && b_columns)) {
        return Err(unknown(m));
    }
    let mut product = Product {
        rows,
        depth,
        a_kind: a,
        b_kind: b,
        accumulator,
        source: source.unwrap_or(accumulator),
        saturate,
        bits,
        a_rows,
        b_columns,
        d: Vec::new(),
        a: Vec::new(),
        b: Vec::new(),
        c: Vec::new(),
    };
    product.d = accumulators(l, &operands[0], &product, true)?;
    product.a = fragments(l, &operands[1], a, product.registers(rows))?;
    product.b = fragments(l, &operands[2], b, product.registers(8))?;
    product.c = accumulators(l, &operands[3], &product, false)?;
    Ok(Code::Collective(Box::new(Collective::Product(product))))
}

fn list<'t>(
    operand: &Operand<'t>,
    count: u32,
    mut slot: impl FnMut(&Operand<'t>) -> Lowered<Slot>,
) -> Lowered<Vec<Slot>> {
    let items = items(operand);
    if items.len() != count as usize {
        return Err(format!(
            "takes a vector of {count} registers, found {}",
            items.len()
        ));
    }
    items.into_iter().map(&mut slot).collect()
}

fn fragments<'t>(
    l: &mut Lowerer<'t>,
    operand: &Operand<'t>,
    kind: Element,
    count: u32,
) -> Lowered<Vec<Slot>> {
    list(operand, count, |item| l.source(item, kind == Element::F64))
}

fn accumulators<'t>(
    l: &mut Lowerer<'t>,
    operand: &Operand<'t>,
    product: &Product,
    write: bool,
) -> Lowered<Vec<Slot>> {
    let kind = if write {
        product.accumulator
    } else {
        product.source
    };
    let packed = kind == Scalar::F16;
    // four products of a quad pair each hold eight elements a lane
    let elements = if product.is_quads() {
        8
    } else {
        product.rows / 4
    };
    let wide = kind == Scalar::F64;
    list(
        operand,
        if packed { elements / 2 } else { elements },
        |item| {
            if write {
                l.out(item, wide)
            } else {
                l.source(item, wide)
            }
        },
    )
}

/// `movmatrix.sync.aligned.m8n8.trans.b16 d, a`
pub(super) fn move_matrix<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 2)?;
    let words = ["sync", "aligned", "m8n8", "trans", "b16"];
    if !words.into_iter().all(|word| m.take(word)) {
        return Err(unknown(m));
    }
    Ok(Code::Collective(Box::new(Collective::MoveMatrix {
        d: l.narrow_out(&operands[0])?,
        a: l.narrow(&operands[1])?,
    })))
}
