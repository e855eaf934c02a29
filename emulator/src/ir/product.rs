//! What a whole warp does together: every product of matrices beside the common ones, and transposes.

use super::{Scalar, Slot};

/// An operation of all lanes of a warp.
#[derive(Debug, Clone)]
pub(crate) enum Collective {
    Product(Product),
    /// `movmatrix`: an 8x8 tile of 16-bit elements, transposed.
    MoveMatrix {
        d: Slot,
        a: Slot,
    },
}

/// What the matrices A and B hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Tf32,
    F64,
    E4m3,
    E5m2,
    Integer { bits: u32, signed: bool },
    Bit,
}

impl Element {
    pub(crate) fn bits(self) -> u32 {
        match self {
            Element::F16 => 16,
            Element::Tf32 => 32,
            Element::F64 => 64,
            Element::E4m3 | Element::E5m2 => 8,
            Element::Integer { bits, .. } => bits,
            Element::Bit => 1,
        }
    }

    /// Elements that a register holds: f64 have registers of 64 bits.
    pub(crate) fn packed(self) -> u32 {
        (32 / self.bits()).max(1)
    }
}

/// How bits are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BitProduct {
    None,
    Xor,
    And,
}

/// `mma.sync` of a shape and types that have no loop of their own; there are 8 columns.
#[derive(Debug, Clone)]
pub(crate) struct Product {
    /// 8 or 16.
    pub rows: u32,
    pub depth: u32,
    pub a_kind: Element,
    pub b_kind: Element,
    /// The type of D.
    pub accumulator: Scalar,
    /// The type of C.
    pub source: Scalar,
    /// Sums of integers clamp.
    pub saturate: bool,
    pub bits: BitProduct,
    /// A lies row by row and B column by column: all but m8n8k4 of f16.
    pub a_rows: bool,
    pub b_columns: bool,
    pub d: Vec<Slot>,
    pub a: Vec<Slot>,
    pub b: Vec<Slot>,
    pub c: Vec<Slot>,
}

impl Product {
    /// Four products, one for each pair of quads: m8n8k4 of f16.
    pub(crate) fn is_quads(&self) -> bool {
        self.a_kind == Element::F16
    }

    /// Registers that hold `lines` rows of A, or columns of B.
    pub(crate) fn registers(&self, lines: u32) -> u32 {
        if self.is_quads() {
            return 2;
        }
        lines * self.depth / (32 * self.a_kind.packed())
    }
}
