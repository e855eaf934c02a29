//! The operations by family, and what each needs beside its slots.

use super::{Pred, Slot};

/// Width of an integer operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    W16,
    W32,
    W64,
}

/// Scalar types of comparisons, conversions, reductions and atomics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scalar {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Scalar {
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Scalar::U8 | Scalar::S8 => 1,
            Scalar::U16 | Scalar::S16 | Scalar::F16 | Scalar::Bf16 => 2,
            Scalar::U32
            | Scalar::S32
            | Scalar::F16x2
            | Scalar::Bf16x2
            | Scalar::Tf32
            | Scalar::F32 => 4,
            Scalar::U64 | Scalar::S64 | Scalar::F64 => 8,
        }
    }

    pub(crate) fn is_float(self) -> bool {
        use Scalar::*;
        matches!(self, F16 | Bf16 | F16x2 | Bf16x2 | Tf32 | F32 | F64)
    }
}

/// Integer operations; a suffix says whether operands are signed where it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntOp {
    Add,
    Sub,
    Mul,
    MulHighS,
    MulHighU,
    Mad,
    MadHighS,
    MadHighU,
    /// Signed, clamped.
    MadHighSat,
    DivS,
    DivU,
    RemS,
    RemU,
    MinS,
    MinU,
    MaxS,
    MaxU,
    AddSat,
    SubSat,
    Abs,
    Neg,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    /// Shift amounts are 32-bit whatever the width, and clamp.
    Shl,
    ShrS,
    ShrU,
    Brev,
    SadS,
    SadU,
    /// Any function of three words by its table.
    Lop3(u8),
}

/// Integer operations whose operands differ in width from the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BitOp {
    Popc,
    Clz,
    FindS {
        shift: bool,
    },
    FindU {
        shift: bool,
    },
    /// b and c are 32-bit.
    ExtractS,
    ExtractU,
    /// a into b at c of length e.
    Insert,
}

/// 32-bit operations with rules of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteOp {
    /// Bytes of a and b picked by c.
    Prmt,
    /// Funnel shifts of b:a by c.
    ShfLeft {
        wrap: bool,
    },
    ShfRight {
        wrap: bool,
    },
    /// Sums of four byte products; the flags say whether a and b are signed.
    Dp4a {
        a_signed: bool,
        b_signed: bool,
    },
}

/// Multiplications that double the width: 16 to 32 or 32 to 64 bits; c is added by mad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WideOp {
    S16,
    U16,
    S32,
    U32,
}

/// Floating-point operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Abs,
    Neg,
    Min,
    Max,
    /// NaN if an operand is NaN.
    MinNan,
    MaxNan,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    Copysign,
}

/// How a result is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Rounding {
    #[default]
    Nearest,
    /// Ties go away from zero: conversions to tf32 only.
    NearestAway,
    Zero,
    Down,
    Up,
}

/// How a conversion rounds to an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Convert {
    pub to: Scalar,
    pub from: Scalar,
    pub rounding: Rounding,
    /// A float result is rounded to a whole number (`.rni` of float to float).
    pub whole: bool,
    pub saturate: bool,
    pub relu: bool,
    /// Infinities and what is too large become the largest number.
    pub finite: bool,
    pub flush: bool,
}

/// Comparisons; the `u` forms are true if an operand is NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// Operations on predicates, and how setp combines its result with another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

/// Where an access goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// Resolved a lane at a time.
    Generic,
    /// Global and const: both lie in device memory.
    Global,
    Shared,
    Local,
    Param,
}

/// The threads that an operation on memory reaches: those of its block, of its cluster, or all of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Block,
    Cluster,
    /// `.gpu` and `.sys`: there is one device.
    Device,
}

/// What an access means to other threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    /// `None` is a weak access; strong ones do not race with their like within their scopes.
    pub scope: Option<Scope>,
    pub acquires: bool,
    pub releases: bool,
}

impl Order {
    /// A plain access.
    pub(crate) const WEAK: Order = Order {
        scope: None,
        acquires: false,
        releases: false,
    };

    /// What atomics are where nothing else is said.
    pub(crate) const RELAXED: Order = Order {
        scope: Some(Scope::Device),
        ..Order::WEAK
    };

    /// Volatile, relaxed, acquire, release, or atomic.
    pub(crate) fn is_strong(self) -> bool {
        self.scope.is_some()
    }
}

/// `ld` and `st`.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub space: Space,
    /// A 64-bit slot, or a 32-bit one where `narrow`.
    pub address: Slot,
    pub narrow: bool,
    pub offset: i64,
    /// Bytes of one element: 1, 2, 4, 8 or 16.
    pub bytes: u8,
    /// Sign-extend a loaded element to its register.
    pub signed: bool,
    /// Registers take two slots each.
    pub wide: bool,
    pub order: Order,
    /// One slot an element of the vector; `None` is a sink.
    pub elements: Vec<Option<Slot>>,
}

/// `atom` and `red`.
#[derive(Debug, Clone)]
pub(crate) struct Atomic {
    pub space: Space,
    pub address: Slot,
    pub narrow: bool,
    pub offset: i64,
    pub op: AtomicOp,
    pub kind: Scalar,
    /// Strong always.
    pub order: Order,
    /// `atom` reads, whoever wants the result; `red` does not.
    pub reads: bool,
    pub result: Option<Slot>,
    pub value: Slot,
    /// The new value of cas.
    pub second: Slot,
}

/// What an atomic does to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    Min,
    Max,
    Inc,
    Dec,
    And,
    Or,
    Xor,
    Exch,
    Cas,
}

/// `cp.async`
#[derive(Debug, Clone)]
pub(crate) struct AsyncCopy {
    pub to: Slot,
    pub to_offset: i64,
    pub to_narrow: bool,
    pub from: Slot,
    pub from_offset: i64,
    /// 4, 8 or 16.
    pub bytes: u8,
    /// Bytes read from the source; the rest become zero.
    pub source_bytes: Option<Slot>,
    /// Lanes in which nothing is read and all bytes become zero.
    pub ignore: Option<Pred>,
}

/// `ldmatrix` and `stmatrix`
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    pub address: Slot,
    pub narrow: bool,
    pub offset: i64,
    pub transposed: bool,
    /// 1, 2 or 4 registers.
    pub registers: Vec<Slot>,
}

/// `mma.sync` with f32 or f16 accumulators.
#[derive(Debug, Clone)]
pub(crate) struct Mma {
    pub kind: Scalar,
    /// 8 or 16; rows are 16 and columns 8.
    pub k: u8,
    pub half_accumulator: bool,
    pub d: [Slot; 4],
    pub a: [Slot; 4],
    pub b: [Slot; 2],
    pub c: [Slot; 4],
}

/// How lanes pair in a shuffle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// `bar` and `barrier`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Barrier {
    pub kind: BarrierKind,
    pub id: Slot,
    /// Threads that take part; `None` is the whole block.
    pub count: Option<Slot>,
    /// All lanes of a warp must execute it together.
    pub aligned: bool,
}

/// What a barrier does besides waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    /// Counts the lanes where the predicate holds into a register.
    Popc {
        d: Slot,
        input: Pred,
        negated: bool,
    },
    /// All or any of a predicate.
    All {
        d: Pred,
        input: Pred,
        negated: bool,
    },
    Any {
        d: Pred,
        input: Pred,
        negated: bool,
    },
}
