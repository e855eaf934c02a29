//! Operations that came with Hopper: mbarriers, bulk copies, clusters, wgmma.

use super::{AtomicOp, Pred, Scalar, Slot, Space};
use crate::tensor_map::TensorType;

/// What an operation does.
#[derive(Debug, Clone)]
pub(crate) enum Hopper {
    Mbarrier(Mbarrier),
    /// `mbarrier.pending_count`
    PendingCount {
        d: Slot,
        state: Slot,
    },
    /// `cp.async.mbarrier.arrive`: arrives when all earlier cp.async of the thread have ended.
    CopyArrive {
        at: Address,
        /// Without `.noinc` the arrival does not count against the expected ones.
        increment: bool,
    },
    /// `fence.proxy.async`
    FenceProxy,
    /// `fence.mbarrier_init`
    FenceInit,
    /// `elect.sync`
    Elect {
        d: Slot,
        p: Pred,
        members: Slot,
    },
    /// `cp.async.bulk` and its kind.
    Bulk(Bulk),
    /// `cp.async.bulk.commit_group`
    BulkCommit,
    /// `cp.async.bulk.wait_group`: at most `pending` groups of the thread stay under way; with `read` the others may
    /// still write.
    BulkWait {
        pending: u32,
        read: bool,
    },
    /// `barrier.cluster.arrive`
    ClusterArrive {
        releases: bool,
        aligned: bool,
    },
    /// `barrier.cluster.wait`
    ClusterWait {
        aligned: bool,
    },
    /// `mapa`: the address of the same offset in another block of the cluster.
    MapAddress {
        d: Slot,
        a: Slot,
        rank: Slot,
        wide: bool,
        generic: bool,
    },
    /// `getctarank`
    RankOf {
        d: Slot,
        a: Slot,
        wide: bool,
        generic: bool,
    },
    Wgmma(Wgmma),
    /// `wgmma.fence`
    WgmmaFence,
    /// `wgmma.commit_group`
    WgmmaCommit,
    /// `wgmma.wait_group`: at most `pending` groups stay under way.
    WgmmaWait {
        pending: u32,
    },
    /// `setmaxnreg`: `more` for `.inc`.
    SetRegisters {
        count: u32,
        more: bool,
    },
    /// `tensormap.replace`: changes a field of the tensor map at an address.
    ReplaceMap {
        at: Address,
        field: MapField,
    },
    /// `tensormap.cp_fenceproxy`: copies a tensor map from shared to global memory.
    CopyMap {
        to: Address,
        from: Address,
    },
}

impl Hopper {
    /// It works by the async proxy, or orders what does.
    pub(crate) fn is_async_proxy(&self) -> bool {
        matches!(
            self,
            Hopper::FenceProxy | Hopper::Bulk(_) | Hopper::Wgmma(_)
        )
    }

    /// What a fault calls it while it works on shared memory.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Hopper::Bulk(bulk) if bulk.reduce.is_some() => "the bulk reduction",
            Hopper::Wgmma(_) => "the wgmma",
            _ => "the bulk copy",
        }
    }

    /// All lanes of the warp must execute it together.
    pub(crate) fn is_collective(&self) -> bool {
        match self {
            Hopper::Elect { .. }
            | Hopper::SetRegisters { .. }
            | Hopper::Wgmma(_)
            | Hopper::WgmmaFence
            | Hopper::WgmmaCommit
            | Hopper::WgmmaWait { .. }
            | Hopper::CopyMap { .. } => true,
            Hopper::ClusterArrive { aligned, .. } | Hopper::ClusterWait { aligned } => *aligned,
            _ => false,
        }
    }

    /// The mask of lanes that take part, where one is given.
    pub(crate) fn members(&self) -> Option<Slot> {
        match self {
            Hopper::Elect { members, .. } => Some(*members),
            _ => None,
        }
    }
}

/// A field of a tensor map, with its new value. Dimensions count from 0, the innermost.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MapField {
    Address(Slot),
    /// The rank less one.
    Rank(Slot),
    Size(usize, Slot),
    /// Of the dimension after the one that is named.
    Stride(usize, Slot),
    Box(usize, Slot),
    Step(usize, Slot),
    Element(TensorType),
    /// Bytes.
    Swizzle(u32),
    NanFill(bool),
    /// A mode of which one value is emulated, which every map has.
    Fixed,
}

/// A bulk copy: a range of bytes, or a box of a tensor.
#[derive(Debug, Clone)]
pub(crate) struct Bulk {
    pub route: Route,
    /// Of a tensor, the end in global memory is its map.
    pub to: Address,
    pub from: Address,
    /// `None` for a tensor, whose map says it.
    pub bytes: Option<Slot>,
    /// Of a tensor: the inner dimension first.
    pub coordinates: Vec<Slot>,
    /// What is told of the end; without it the copy belongs to a group of its thread.
    pub mbarrier: Option<Address>,
    /// The blocks of the cluster that receive it, a bit each.
    pub multicast: Option<Slot>,
    /// The destination is combined with the source; a tensor's map has the type.
    pub reduce: Option<(AtomicOp, Option<Scalar>)>,
}

/// Where a bulk copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Global to shared.
    Load,
    /// Shared to global.
    Store,
    /// Shared to the shared memory of a block of the cluster.
    Across,
}

/// An address operand: a 64-bit slot, or a 32-bit one where `narrow`, and an offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub space: Space,
    pub slot: Slot,
    pub narrow: bool,
    pub offset: i64,
}

/// An operation on an mbarrier.
#[derive(Debug, Clone)]
pub(crate) struct Mbarrier {
    pub op: MbarrierOp,
    pub at: Address,
    /// Not `.relaxed`: arrivals release and waits acquire.
    pub orders: bool,
}

/// What happens to an mbarrier.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MbarrierOp {
    Init {
        count: Slot,
    },
    Invalidate,
    ExpectTx {
        bytes: Slot,
    },
    CompleteTx {
        bytes: Slot,
    },
    Arrive {
        /// 1 if it is not given.
        count: Option<Slot>,
        /// Bytes that are expected first.
        bytes: Option<Slot>,
        /// Takes itself out of the phases to come.
        drop: bool,
        /// May not complete the phase.
        no_complete: bool,
        state: Option<Slot>,
    },
    /// Has the phase of `state` ended?
    TestState {
        d: Pred,
        state: Slot,
    },
    /// Has the phase of this parity ended?
    TestParity {
        d: Pred,
        parity: Slot,
    },
}

/// `wgmma.mma_async`: a warpgroup multiplies 64 rows of A by N columns of B.
#[derive(Debug, Clone)]
pub(crate) struct Wgmma {
    pub n: u16,
    pub k: u16,
    pub a_kind: MatrixElement,
    pub b_kind: MatrixElement,
    pub accumulator: Accumulator,
    /// Sums of integers saturate.
    pub saturate: bool,
    pub d: Vec<Slot>,
    pub a: WgmmaSource,
    /// A matrix descriptor.
    pub b: Slot,
    /// Adds to what D holds where the predicate is true; the flag negates it.
    pub scale_d: (Pred, bool),
    pub negate_a: bool,
    pub negate_b: bool,
    /// M or N is contiguous in shared memory, not K.
    pub a_transposed: bool,
    pub b_transposed: bool,
}

/// Where the rows of A come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WgmmaSource {
    Registers([Slot; 4]),
    Descriptor(Slot),
}

/// The type of A or B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatrixElement {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
}

impl MatrixElement {
    pub(crate) fn bytes(self) -> usize {
        match self {
            MatrixElement::Tf32 => 4,
            MatrixElement::F16 | MatrixElement::Bf16 => 2,
            _ => 1,
        }
    }
}

/// The type of D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accumulator {
    F32,
    F16,
    S32,
}
