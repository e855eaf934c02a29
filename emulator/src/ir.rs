//! The lowered program: flat operations on register slots, ready to run.
//!
//! A slot is a row of 32 words, one a lane. A 64-bit register takes two rows. Immediates, parameters, special registers
//! and addresses are slots too, filled when a warp starts, so that an operand is always a slot.

use std::sync::Arc;

/// Index of a row in a warp's register file.
pub(crate) type Slot = u16;
/// Index of a predicate: one bit a lane.
pub(crate) type Pred = u16;
/// Index into [`Body::ops`].
pub(crate) type Pc = u32;

/// The predicate that is true in every lane.
pub(crate) const ALWAYS: Pred = 0;
/// The predicate that takes results nobody wants.
pub(crate) const SINK: Pred = 1;

/// One operation with its guard.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub code: Code,
    pub guard: Pred,
    pub negated: bool,
}

/// What an operation costs on hardware: the classes that counters report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Tensor-core multiply-add (mma).
    Mma,
    /// Multi-function unit: ex2, lg2, rcp, rsqrt, sin, cos, tanh.
    Mufu,
    /// Single-precision arithmetic and comparison.
    Fp32,
    /// Double-precision arithmetic.
    Fp64,
    /// Half-precision arithmetic.
    Half,
    /// Integer and logic, comparison and selection.
    Integer,
    /// Conversion between types.
    Convert,
    /// Moves, packing and reading special registers.
    Move,
    /// Global, local and parameter loads and stores, cp.async.
    Global,
    /// Shared loads and stores, ldmatrix, stmatrix.
    Shared,
    /// Atomics of any space.
    Atomic,
    /// Shuffles, votes, matches, reductions over a warp.
    Shuffle,
    /// Barriers, waits and fences.
    Barrier,
    /// Branches and exits.
    Control,
}

impl Class {
    /// Every class, in the order reports print them.
    pub const ALL: [Class; 14] = [
        Class::Mma,
        Class::Mufu,
        Class::Fp32,
        Class::Fp64,
        Class::Half,
        Class::Integer,
        Class::Convert,
        Class::Move,
        Class::Global,
        Class::Shared,
        Class::Atomic,
        Class::Shuffle,
        Class::Barrier,
        Class::Control,
    ];

    /// The word reports print.
    pub fn name(self) -> &'static str {
        match self {
            Class::Mma => "mma",
            Class::Mufu => "MUFU",
            Class::Fp32 => "FP32",
            Class::Fp64 => "FP64",
            Class::Half => "half",
            Class::Integer => "integer",
            Class::Convert => "convert",
            Class::Move => "move",
            Class::Global => "global memory",
            Class::Shared => "shared memory",
            Class::Atomic => "atomic",
            Class::Shuffle => "shuffle",
            Class::Barrier => "barrier",
            Class::Control => "control",
        }
    }
}

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
    /// Volatile, relaxed, acquire or release: not judged as a race.
    pub strong: bool,
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

/// What an operation does.
#[derive(Debug, Clone)]
pub(crate) enum Code {
    /// Hints and directives that change nothing here: prefetch, pragma, discard.
    Nop,
    Move32 {
        d: Slot,
        a: Slot,
    },
    Move64 {
        d: Slot,
        a: Slot,
    },
    MovePred {
        d: Pred,
        a: Pred,
        negated: bool,
    },
    /// Narrow parts into one register: two or four 16-bit, two 32-bit.
    Pack {
        d: Slot,
        parts: Vec<Slot>,
        part_bytes: u8,
    },
    Unpack {
        a: Slot,
        parts: Vec<Option<Slot>>,
        part_bytes: u8,
    },
    Int {
        op: IntOp,
        width: Width,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Bits {
        op: BitOp,
        wide: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        e: Slot,
    },
    Bytes {
        op: ByteOp,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Wide {
        op: WideOp,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Option<Slot>,
    },
    F32 {
        op: FloatOp,
        flush: bool,
        saturate: bool,
        rounding: Rounding,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    F64 {
        op: FloatOp,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `kind` is F16, Bf16 or a packed pair of them.
    Half {
        op: FloatOp,
        kind: Scalar,
        flush: bool,
        saturate: bool,
        relu: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Compare {
        cmp: Cmp,
        kind: Scalar,
        flush: bool,
        d: Pred,
        q: Pred,
        a: Slot,
        b: Slot,
        combine: Option<(Logic, Pred, bool)>,
    },
    /// `set`: all ones or 1.0 where the comparison holds.
    SetValue {
        cmp: Cmp,
        kind: Scalar,
        flush: bool,
        float: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Select32 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Pred,
    },
    Select64 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Pred,
    },
    /// `slct`: a where c >= 0, else b.
    SelectSign {
        wide: bool,
        float: bool,
        flush: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    PredLogic {
        op: Logic,
        d: Pred,
        a: Pred,
        b: Pred,
    },
    PredNot {
        d: Pred,
        a: Pred,
    },
    Convert {
        convert: Convert,
        d: Slot,
        a: Slot,
    },
    /// `cvt.rn.f16x2.f32 d, a, b`: a to the high half.
    ConvertPair {
        to: Scalar,
        relu: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Branch {
        target: Pc,
    },
    BranchIndex {
        index: Slot,
        targets: Arc<[Pc]>,
    },
    Exit,
    Trap,
    Barrier(Barrier),
    WarpSync {
        members: Slot,
    },
    Shuffle {
        mode: Shuffle,
        d: Slot,
        p: Pred,
        a: Slot,
        b: Slot,
        clamp: Slot,
        members: Slot,
    },
    Vote {
        mode: Vote,
        d: Slot,
        p: Pred,
        a: Pred,
        negated: bool,
        members: Slot,
    },
    Match {
        all: bool,
        wide: bool,
        d: Slot,
        p: Pred,
        a: Slot,
        members: Slot,
    },
    Reduce {
        op: AtomicOp,
        kind: Scalar,
        d: Slot,
        a: Slot,
        members: Slot,
    },
    ActiveMask {
        d: Slot,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic(Box<Atomic>),
    CopyAsync(Box<AsyncCopy>),
    CopyCommit,
    /// Waits until at most `pending` groups of this thread are in flight.
    CopyWait {
        pending: u32,
    },
    /// Commits, then waits for every group.
    CopyWaitAll,
    LoadMatrix(Box<Matrix>),
    StoreMatrix(Box<Matrix>),
    Mma(Box<Mma>),
    Fence,
    /// Generic address to the window of a space (`to`) or back.
    AddressSpace {
        space: Space,
        to_space: bool,
        d: Slot,
        a: Slot,
    },
    /// `isspacep`
    IsSpace {
        space: Space,
        d: Pred,
        a: Slot,
    },
    Clock {
        d: Slot,
        wide: bool,
    },
}

/// What fills a constant slot when a warp starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    Word(u32),
    Double(u64),
    Special(Special),
    /// 4 bytes of the parameters at an offset.
    Param32(u32),
    Param64(u32),
    /// Address of a global variable, by index in [`crate::module::Program`].
    Global {
        variable: u32,
        offset: i64,
    },
}

/// Registers that the hardware fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NumWarps,
    SmId,
    NumSms,
    GridId,
    LaneMaskEq,
    LaneMaskLe,
    LaneMaskLt,
    LaneMaskGe,
    LaneMaskGt,
    DynamicShared,
    TotalShared,
    /// Cluster coordinates of a launch without clusters: 0, and sizes of 1.
    ClusterIndex,
    ClusterSize,
}

/// Where an operation comes from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Origin {
    /// Line in the PTX text, from 1.
    pub ptx: u32,
    /// `.loc`: file index and line; 0 where the PTX has none.
    pub file: u32,
    pub source: u32,
}

/// A lowered kernel body.
#[derive(Debug, Default)]
pub(crate) struct Body {
    pub ops: Vec<Op>,
    pub origins: Vec<Origin>,
    pub classes: Vec<Class>,
    /// The instruction as written, for faults.
    pub texts: Vec<Box<str>>,
    pub constants: Vec<(Slot, Constant)>,
    pub rows: u32,
    pub predicates: u32,
    /// Bytes that every shared access is a multiple of and aligned to: the grain of race detection.
    pub shared_grain: u32,
}
