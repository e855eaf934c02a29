//! Operations that each lane does for itself and that are too rare for a loop of their own: a function of words to a word.

use super::{Cmp, FloatOp, Logic, Pred, Rounding, Scalar, Slot};

/// One such operation with its operands.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    pub op: LaneOp,
    pub to: Target,
    pub sources: Vec<Source>,
}

/// Where a result goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Narrow(Slot),
    Wide(Slot),
    /// Bit 0 and bit 1 of the result.
    Predicates(Pred, Pred),
    /// The low word, and bit 32 as a predicate.
    NarrowAndPredicate(Slot, Pred),
}

/// Where an operand comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Narrow(Slot),
    Wide(Slot),
    /// 0 or 1.
    Predicate(Pred, bool),
}

/// What a lane computes; operands in the order of the manual.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LaneOp {
    /// Position of the n-th set bit from a base.
    Fns,
    /// Sign- or zero-extends the low bits; `wrap` takes the number of bits modulo 32.
    Szext {
        signed: bool,
        wrap: bool,
    },
    /// A run of ones from a position.
    Bmsk {
        wrap: bool,
    },
    /// Two 16-bit by 8-bit products, with the low or the high bytes of b.
    Dp2a {
        a_signed: bool,
        b_signed: bool,
        high: bool,
    },
    /// Products of 24 bits: bits 0 to 31, or 16 to 47 (`high`).
    Mul24 {
        signed: bool,
        high: bool,
        add: bool,
        saturate: bool,
    },
    /// `prmt` with a mode: which byte of b:a goes to each place, for each value of the low two bits of c.
    Prmt([[u8; 4]; 4]),
    /// `lop3` with a predicate: whether the result is other than zero, combined with another.
    Lop3 {
        table: u8,
        logic: Logic,
    },
    /// Two 16-bit sums, minima or maxima.
    Pair16 {
        op: PairOp,
        signed: bool,
        relu: bool,
    },
    /// `min.relu.s32` and `max.relu.s32`
    Relu32 {
        max: bool,
    },
    /// `testp`
    Property {
        property: Property,
        kind: Scalar,
    },
    /// Floating-point arithmetic with a direction, or with signs apart from magnitudes.
    Float {
        op: FloatOp,
        kind: Scalar,
        rounding: Rounding,
        flush: bool,
        saturate: bool,
        /// min and max of magnitudes, with the product of the signs.
        xor_sign: bool,
    },
    /// `rcp` and `rsqrt` of f64 by their upper halves.
    Gross {
        root: bool,
    },
    /// Comparison of both halves; bit 0 and 1 of the result.
    ComparePair {
        cmp: Cmp,
        kind: Scalar,
        flush: bool,
        logic: Option<Logic>,
    },
    /// `set`: true as a value of type `to`.
    Set {
        cmp: Cmp,
        kind: Scalar,
        to: Scalar,
        flush: bool,
        logic: Option<Logic>,
    },
    /// Two values to a pair of halves or of bytes; the first source goes up.
    ConvertPair {
        to: Small,
        rounding: Rounding,
        relu: bool,
        finite: bool,
    },
    /// Both halves of an f16x2 to bytes.
    ConvertHalves {
        to: Small,
        relu: bool,
    },
    /// Two bytes to an f16x2.
    Widen {
        from: Small,
        relu: bool,
    },
    /// `cvt.pack.sat`: two signed integers to the low end of a word; what c has moves up.
    Pack {
        bits: u32,
        signed: bool,
        keeps: bool,
    },
    Video(Video),
    VideoMad {
        a: Part,
        b: Part,
        negate_product: bool,
        negate_c: bool,
        plus_one: bool,
        saturate: bool,
        shift: u32,
    },
    VideoParts(VideoParts),
}

/// What [`LaneOp::Pair16`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PairOp {
    Add,
    Min,
    Max,
}

/// Formats narrower than a register of 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Small {
    F16,
    Bf16,
    E4m3,
    E5m2,
}

/// What `testp` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Property {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Some bits of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub start: u32,
    pub bits: u32,
    pub signed: bool,
}

/// What a video instruction computes of a and b.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VideoOp {
    Add,
    Sub,
    AbsDiff,
    Min,
    Max,
    Average,
    /// Shifts clamp the amount to 32, or wrap.
    Shl {
        wrap: bool,
    },
    Shr {
        wrap: bool,
    },
    Set(Cmp),
}

/// What follows the operation of a scalar video instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Second {
    None,
    Add,
    Min,
    Max,
    /// The result goes into these bits of c.
    Merge(Part),
}

/// A scalar video instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Video {
    pub op: VideoOp,
    pub a: Part,
    pub b: Part,
    pub signed: bool,
    pub saturate: bool,
    pub second: Second,
}

/// A video instruction of two or four parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VideoParts {
    pub op: VideoOp,
    /// 2 or 4.
    pub parts: u32,
    pub d_signed: bool,
    pub a_signed: bool,
    pub b_signed: bool,
    /// Which part of b:a each part of the result takes as its a.
    pub pick_a: [u8; 4],
    pub pick_b: [u8; 4],
    /// Parts that are computed; the others are c's.
    pub mask: [bool; 4],
    pub saturate: bool,
    /// The results are added to c as a whole.
    pub accumulate: bool,
}

/// Arithmetic with the carry flag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Carry {
    pub op: CarryOp,
    pub wide: bool,
    pub d: Slot,
    pub a: Slot,
    pub b: Slot,
    pub c: Slot,
    /// The flag.
    pub flag: Pred,
    pub reads: bool,
    pub writes: bool,
}

/// Which arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CarryOp {
    Add,
    Sub,
    /// Half of a product, plus c.
    Mad {
        high: bool,
        signed: bool,
    },
}
