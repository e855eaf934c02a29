//! The lowered program: flat operations on register slots, ready to run.
//!
//! A slot is a row of 32 words, one a lane. A 64-bit register takes two rows. Immediates, parameters, special registers
//! and addresses are slots too, filled when a warp starts, so that an operand is always a slot.

mod call;
mod hopper;
mod lanes;
mod operation;
mod product;

use std::sync::Arc;

use crate::class::Class;
pub(crate) use call::*;
pub(crate) use hopper::*;
pub(crate) use lanes::*;
pub(crate) use operation::*;
pub(crate) use product::*;

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
    /// What is too rare for a variant of its own.
    Lanes(Box<Lanes>),
    Carry(Box<Carry>),
    Branch {
        target: Pc,
    },
    BranchIndex {
        index: Slot,
        targets: Arc<[Pc]>,
    },
    Exit,
    Call(Box<Call>),
    /// Back to where the function was called from.
    Return,
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
    /// One element after the other.
    AtomicVector(Box<[Atomic]>),
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
    /// What a whole warp does together, beside the common products.
    Collective(Box<Collective>),
    /// A fence of memory among the threads of a scope; `None` for those of proxies that change nothing here.
    Fence(Option<Scope>),
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
    /// What came with Hopper.
    Hopper(Box<Hopper>),
}

impl Code {
    pub(crate) fn hopper(op: Hopper) -> Code {
        Code::Hopper(Box::new(op))
    }
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
    /// Half of the address of the memory that a cooperative launch synchronises by.
    Workspace {
        high: bool,
    },
    /// The cluster in the grid, and clusters of the grid.
    Cluster(u8),
    NumClusters(u8),
    /// The block in its cluster, and blocks of the cluster.
    ClusterBlock(u8),
    ClusterBlocks(u8),
    ClusterRank,
    ClusterRanks,
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

/// Texts behind each other, one an operation.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    all: String,
    ends: Vec<usize>,
}

impl Texts {
    /// Adds a text, which `write` appends to what it gets.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut String)) {
        write(&mut self.all);
        self.ends.push(self.all.len());
    }

    /// The text of an operation; empty if there is none.
    pub(crate) fn get(&self, pc: Pc) -> &str {
        let at = pc as usize;
        let start = at.checked_sub(1).and_then(|before| self.ends.get(before));
        let range = start.copied().unwrap_or(0)..self.ends.get(at).copied().unwrap_or(0);
        self.all.get(range).unwrap_or_default()
    }
}

/// A lowered kernel body.
#[derive(Debug, Default)]
pub(crate) struct Body {
    pub ops: Vec<Op>,
    pub origins: Vec<Origin>,
    pub classes: Vec<Class>,
    /// The instruction as written, for faults.
    pub texts: Texts,
    /// It may name the shared memory of its own block alone.
    pub near: Vec<bool>,
    pub constants: Vec<(Slot, Constant)>,
    /// Where threads begin: functions stand in front.
    pub entry: Pc,
    /// The functions that the kernel may call, in the order of their code.
    pub functions: Vec<Callee>,
    pub rows: u32,
    pub predicates: u32,
    /// Bytes that every shared access is a multiple of and aligned to: the grain of race detection.
    pub shared_grain: u32,
    /// It has instructions of the async proxy.
    pub async_proxy: bool,
    /// It reads memory by strong operations: threads may order themselves by what they find.
    pub synchronises: bool,
    /// For each operation the registers it names that a wgmma uses; empty without wgmma.
    pub product_slots: Vec<Box<[Slot]>>,
}
