//! [`Class`]: what an operation costs on hardware, as the counters report it.

use crate::ir::{Code, Collective, Element, FloatOp, Hopper, LaneOp, MatrixElement, Scalar, Space};

/// What an operation costs on hardware: the classes that counters report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Tensor-core multiply-add (mma, wgmma).
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
    /// Shuffles and reductions over a warp, movmatrix.
    Shuffle,
    /// Votes, matches, elections.
    Vote,
    /// Barriers, waits and fences.
    Barrier,
    /// Branches and exits.
    Control,
}

/// What the tensor cores multiply: how fast they do it depends on that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MatrixKind {
    /// f16 and bf16.
    Half,
    /// tf32.
    Tf32,
    /// f64.
    F64,
    /// e4m3 and e5m2.
    F8,
    /// Integers of 8 bits.
    Int8,
    /// Integers of 4 bits.
    Int4,
    /// Single bits.
    Bit,
}

impl MatrixKind {
    /// Every kind, in the order of [`Report::mma`](crate::Report::mma).
    pub const ALL: [MatrixKind; 7] = [
        MatrixKind::Half,
        MatrixKind::Tf32,
        MatrixKind::F64,
        MatrixKind::F8,
        MatrixKind::Int8,
        MatrixKind::Int4,
        MatrixKind::Bit,
    ];

    /// The word reports print.
    pub fn name(self) -> &'static str {
        match self {
            MatrixKind::Half => "f16 or bf16",
            MatrixKind::Tf32 => "tf32",
            MatrixKind::F64 => "f64",
            MatrixKind::F8 => "f8",
            MatrixKind::Int8 => "int8",
            MatrixKind::Int4 => "int4",
            MatrixKind::Bit => "bits",
        }
    }
}

impl From<Element> for MatrixKind {
    fn from(element: Element) -> MatrixKind {
        match element {
            Element::F16 => MatrixKind::Half,
            Element::Tf32 => MatrixKind::Tf32,
            Element::F64 => MatrixKind::F64,
            Element::E4m3 | Element::E5m2 => MatrixKind::F8,
            Element::Integer { bits: 4, .. } => MatrixKind::Int4,
            Element::Integer { .. } => MatrixKind::Int8,
            Element::Bit => MatrixKind::Bit,
        }
    }
}

impl From<MatrixElement> for MatrixKind {
    fn from(element: MatrixElement) -> MatrixKind {
        match element {
            MatrixElement::F16 | MatrixElement::Bf16 => MatrixKind::Half,
            MatrixElement::Tf32 => MatrixKind::Tf32,
            MatrixElement::E4m3 | MatrixElement::E5m2 => MatrixKind::F8,
            MatrixElement::S8 | MatrixElement::U8 => MatrixKind::Int8,
        }
    }
}

impl Class {
    /// Every class, in the order reports print them.
    pub const ALL: [Class; 15] = [
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
        Class::Vote,
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
            Class::Vote => "vote",
            Class::Barrier => "barrier",
            Class::Control => "control",
        }
    }

    fn of_hopper(op: &Hopper) -> Class {
        match op {
            Hopper::Mbarrier(_)
            | Hopper::PendingCount { .. }
            | Hopper::CopyArrive { .. }
            | Hopper::FenceProxy
            | Hopper::FenceInit
            | Hopper::SetRegisters { .. } => Class::Barrier,
            Hopper::ClusterArrive { .. } | Hopper::ClusterWait { .. } => Class::Barrier,
            Hopper::MapAddress { .. } | Hopper::RankOf { .. } => Class::Move,
            Hopper::Wgmma(_) => Class::Mma,
            Hopper::WgmmaFence | Hopper::WgmmaCommit | Hopper::WgmmaWait { .. } => Class::Barrier,
            Hopper::BulkCommit | Hopper::BulkWait { .. } => Class::Barrier,
            Hopper::Bulk(_) | Hopper::CopyMap { .. } => Class::Global,
            Hopper::ReplaceMap { at, .. } if at.space == Space::Shared => Class::Shared,
            Hopper::ReplaceMap { .. } => Class::Global,
            Hopper::Elect { .. } => Class::Vote,
        }
    }

    /// The class of an operation.
    pub(crate) fn of(code: &Code) -> Class {
        match code {
            Code::Mma(_) => Class::Mma,
            Code::Collective(op) => match **op {
                Collective::Product(_) => Class::Mma,
                Collective::MoveMatrix { .. } => Class::Shuffle,
            },
            Code::F32 { op, .. } => match op {
                FloatOp::Rcp
                | FloatOp::Sqrt
                | FloatOp::Rsqrt
                | FloatOp::Ex2
                | FloatOp::Lg2
                | FloatOp::Sin
                | FloatOp::Cos
                | FloatOp::Tanh
                | FloatOp::Div => Class::Mufu,
                _ => Class::Fp32,
            },
            Code::F64 { .. } => Class::Fp64,
            Code::Half { op, .. } => match op {
                FloatOp::Ex2 | FloatOp::Tanh => Class::Mufu,
                _ => Class::Half,
            },
            Code::Compare { kind, .. } | Code::SetValue { kind, .. } => match kind {
                Scalar::F32 => Class::Fp32,
                Scalar::F64 => Class::Fp64,
                kind if kind.is_float() => Class::Half,
                _ => Class::Integer,
            },
            Code::Int { .. }
            | Code::Bits { .. }
            | Code::Bytes { .. }
            | Code::Wide { .. }
            | Code::Select32 { .. }
            | Code::Select64 { .. }
            | Code::SelectSign { .. }
            | Code::PredLogic { .. }
            | Code::PredNot { .. } => Class::Integer,
            Code::Lanes(lanes) => Class::of_lane(&lanes.op),
            Code::Carry(_) => Class::Integer,
            Code::Convert { .. } | Code::ConvertPair { .. } => Class::Convert,
            Code::Nop
            | Code::Move32 { .. }
            | Code::Move64 { .. }
            | Code::MovePred { .. }
            | Code::Pack { .. }
            | Code::Unpack { .. }
            | Code::AddressSpace { .. }
            | Code::IsSpace { .. }
            | Code::Clock { .. } => Class::Move,
            Code::Load(access) | Code::Store(access) if access.space == Space::Shared => {
                Class::Shared
            }
            Code::Load(_) | Code::Store(_) | Code::CopyAsync(_) => Class::Global,
            Code::LoadMatrix(_) | Code::StoreMatrix(_) => Class::Shared,
            Code::Atomic(_) | Code::AtomicVector(_) => Class::Atomic,
            Code::Shuffle { .. } | Code::Reduce { .. } => Class::Shuffle,
            Code::Vote { .. } | Code::Match { .. } | Code::ActiveMask { .. } => Class::Vote,
            Code::Barrier(_)
            | Code::WarpSync { .. }
            | Code::CopyCommit
            | Code::CopyWait { .. }
            | Code::CopyWaitAll
            | Code::Fence(_) => Class::Barrier,
            Code::Hopper(op) => Class::of_hopper(op),
            Code::Branch { .. }
            | Code::BranchIndex { .. }
            | Code::Call(_)
            | Code::Return
            | Code::Exit
            | Code::Trap => Class::Control,
        }
    }

    fn of_lane(op: &LaneOp) -> Class {
        let of_kind = |kind: &Scalar| match kind {
            Scalar::F32 => Class::Fp32,
            Scalar::F64 => Class::Fp64,
            kind if kind.is_float() => Class::Half,
            _ => Class::Integer,
        };
        match op {
            LaneOp::Float { op, kind, .. } => match (op, kind) {
                (FloatOp::Div | FloatOp::Rcp | FloatOp::Sqrt, Scalar::F32) => Class::Mufu,
                _ => of_kind(kind),
            },
            LaneOp::Gross { .. } => Class::Mufu,
            LaneOp::Property { kind, .. }
            | LaneOp::ComparePair { kind, .. }
            | LaneOp::Set { kind, .. } => of_kind(kind),
            LaneOp::ConvertPair { .. }
            | LaneOp::ConvertHalves { .. }
            | LaneOp::Widen { .. }
            | LaneOp::Pack { .. } => Class::Convert,
            _ => Class::Integer,
        }
    }
}
