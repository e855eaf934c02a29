//! What a block runs with: its memories, the race detector and the counters.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::Forgiven;
use super::Shared as Launching;
use super::bulk::Pending;
use super::cluster::Gate;
use super::global::exhausted;
use super::mbarrier::{self, Mbarrier};
use super::registers::LANES;
pub(super) use super::traffic::{count_global, count_shared};
use super::warp::Warp;
use super::wgmma::{self, Warpgroup};
use crate::fault::FaultKind;
use crate::ir::{Body, Code, Pc, Space};
use crate::memory::{Allocation, Allocations};
use crate::race::{Conflict, Detector, Flags, Unordered};
use crate::report::Report;

/// Generic addresses of the windows into the memories of a block and of a thread.
pub(super) const SHARED_WINDOW: u64 = 1 << 32;
pub(super) const LOCAL_WINDOW: u64 = 2 << 32;
pub(super) const PARAM_WINDOW: u64 = 3 << 32;
/// Addresses of the shared memory of a cluster: offset `a` of block `r` is `r + 1 << CLUSTER_SHIFT | a`, and the running
/// block's own memory is at `a` as well.
pub(super) const CLUSTER_SHIFT: u32 = 24;
/// Bytes of a window.
const WINDOW: u64 = 1 << 32;

/// A mistake of one lane, before its place in the code is added.
#[derive(Debug)]
pub(super) struct Trouble {
    pub kind: FaultKind,
    /// `None` if the warp as a whole made it.
    pub lane: Option<u32>,
    pub message: String,
    /// The other access of a race on shared memory.
    pub conflict: Option<Conflict>,
    /// The other access of a race on global memory.
    pub unordered: Option<Unordered>,
}

impl Trouble {
    pub(super) fn new(
        kind: FaultKind,
        lane: impl Into<Option<u32>>,
        message: impl Into<String>,
    ) -> Box<Self> {
        Box::new(Trouble {
            kind,
            lane: lane.into(),
            message: message.into(),
            conflict: None,
            unordered: None,
        })
    }
}

fn warpgroups(blocks: usize, warps: usize) -> Vec<Warpgroup> {
    let count = blocks * warps.div_ceil(wgmma::WARPS);
    std::iter::repeat_with(Warpgroup::default)
        .take(count)
        .collect()
}

/// Result of an operation.
pub(super) type Done<T = ()> = Result<T, Box<Trouble>>;

/// The lanes of a mask, from the lowest.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        Some(lane)
    })
}

/// The surroundings of a running block, used again for the next one.
pub(super) struct Context<'l> {
    pub body: &'l Body,
    pub(super) allocations: &'l Allocations,
    /// Races on global memory are judged.
    pub judges: bool,
    /// What strong accesses of the launch leave beside global memory.
    pub flags: &'l Mutex<Flags>,
    /// The allocation that served last: neighbours in time are neighbours in space.
    pub last: Option<&'l Allocation>,
    pub params: &'l [u8],
    /// The shared memory of all blocks of the cluster, [`Context::stride`] apart.
    pub shared: Vec<u8>,
    /// Bytes of one block's shared memory, and from the start of one to the next.
    pub block_bytes: usize,
    pub(super) stride: usize,
    /// Where the memory of the block begins whose warp runs.
    pub own: usize,
    pub detector: Detector,
    /// mbarriers by where they lie in `shared`.
    pub mbarriers: BTreeMap<usize, Mbarrier>,
    /// mbarriers that were initialised in each block.
    pub initialised: Vec<u32>,
    /// Ends of the cluster's barrier when a fence.mbarrier_init showed an mbarrier to the cluster.
    pub init_fences: BTreeMap<usize, u64>,
    /// Times that the barrier of the cluster has opened.
    pub cluster_phase: u64,
    pub gate: Gate,
    /// What is under way and ends by itself.
    pub pending: Vec<Pending>,
    /// Grows with everything that a warp which gave way may wait for.
    pub changes: u64,
    /// Blocks whose warps have all exited.
    pub exited: Vec<bool>,
    /// Registers a thread of each warp: `.maxnreg`, then what setmaxnreg said; 0 where nothing did.
    pub registers: Vec<u32>,
    /// Warps of one block, and the warpgroups of all.
    pub block_warps: usize,
    pub warpgroups: Vec<Warpgroup>,
    /// Registers of a block, and whether the kernel says how many.
    pub register_pool: (u32, bool),
    /// What a warp has of them at its start.
    start_registers: u32,
    /// Times each operation was issued, a warp at a time.
    pub forgiven: Forgiven,
    pub issued: Vec<u64>,
    pub report: Report,
    /// Strong reads of global memory, where threads order themselves by them.
    pub polls: u64,
    /// Instructions of this block, for clocks.
    pub clock: u64,
}

impl<'l> Context<'l> {
    /// For `blocks` blocks of `warps` warps each.
    pub(super) fn new(launch: &'l Launching<'l>, blocks: usize, warps: usize) -> Self {
        let body = &launch.kernel.body;
        let block_bytes = launch.kernel.shared_bytes(launch.launch.dynamic_shared) as usize;
        let stride = block_bytes.next_multiple_of(16);
        let start_registers = launch.kernel.registers.unwrap_or(0);
        let detector =
            Detector::cluster(blocks, stride, body.shared_grain, warps, body.async_proxy);
        let detector = match body.synchronises {
            true => detector.synchronising(),
            false => detector,
        };
        Context {
            body,
            allocations: launch.allocations,
            judges: launch.options.global_races,
            flags: &launch.flags,
            last: None,
            params: launch.launch.params,
            shared: vec![0; blocks * stride],
            block_bytes,
            stride,
            own: 0,
            detector,
            mbarriers: BTreeMap::new(),
            initialised: vec![0; blocks],
            init_fences: BTreeMap::new(),
            cluster_phase: 0,
            gate: Gate::default(),
            pending: Vec::new(),
            changes: 0,
            exited: vec![false; blocks],
            registers: vec![start_registers; blocks * warps],
            block_warps: warps,
            warpgroups: warpgroups(blocks, warps),
            register_pool: match launch.kernel.registers {
                Some(each) => (each * (warps * LANES) as u32, true),
                None => (launch.device.registers_per_block, false),
            },
            start_registers,
            forgiven: launch.options.forgiven,
            issued: vec![0; body.ops.len()],
            report: Report::default(),
            polls: 0,
            clock: 0,
        }
    }

    /// Forgets the blocks that ran here; the next are number `unit` of the grid.
    pub(super) fn reset(&mut self, unit: u64) {
        self.detector.reset(unit as u32);
        self.mbarriers.clear();
        self.initialised.fill(0);
        self.init_fences.clear();
        self.cluster_phase = 0;
        self.gate = Gate::default();
        self.pending.clear();
        self.changes = 0;
        self.exited.fill(false);
        self.registers.fill(self.start_registers);
        self.warpgroups = warpgroups(self.exited.len(), self.block_warps);
        self.clock = 0;
    }

    /// A warp of block `rank` of the cluster runs from now on.
    pub(super) fn enter(&mut self, rank: usize) {
        self.own = rank * self.stride;
    }

    /// The block that a byte of the cluster's shared memory belongs to.
    pub(super) fn block_at(&self, at: usize) -> usize {
        at / self.stride.max(1)
    }

    /// The offset in its block of a byte of the cluster's shared memory.
    pub(super) fn offset_in_block(&self, at: usize) -> usize {
        at % self.stride.max(1)
    }

    /// A fence shows the async proxy the mbarriers that these lanes have initialised, or have seen initialised. With
    /// `cluster`, as `fence.mbarrier_init` does, all that the barrier of the cluster lets go on from here see them too.
    pub(super) fn show_mbarriers(&mut self, warp: &Warp, active: u32, cluster: bool) {
        for (&at, barrier) in &mut self.mbarriers {
            if barrier.shown && !cluster {
                continue;
            }
            let seen = lanes(active).any(|lane| {
                let by = mbarrier::accessor(warp, lane);
                self.detector.use_object(at, by).is_ok()
            });
            barrier.shown |= seen;
            if seen && cluster {
                self.init_fences.entry(at).or_insert(self.cluster_phase);
            }
        }
    }

    pub(super) fn init_is_visible(&self, at: usize) -> bool {
        (self.init_fences.get(&at)).is_some_and(|&phase| phase < self.cluster_phase)
    }

    /// An instruction and its line, for a message.
    pub(super) fn place(&self, pc: Pc) -> String {
        let line = self.body.origins[pc as usize].ptx;
        format!("PTX line {line}: {}", self.body.texts.get(pc))
    }

    /// What an instruction is called that works on shared memory by itself.
    pub(super) fn copy_name(&self, pc: Pc) -> &'static str {
        match self.body.ops.get(pc as usize).map(|op| &op.code) {
            Some(Code::Hopper(op)) => op.name(),
            _ => "the cp.async",
        }
    }

    /// A warp has synchronised: what its lanes do next comes after what they did before.
    pub(super) fn new_period(&mut self, warp: usize) -> Done {
        match self.detector.warp_sync(warp) {
            true => Ok(()),
            false => Err(exhausted()),
        }
    }
}

/// The state space and address in it of a generic address.
pub(super) fn resolve(address: u64) -> (Space, u64) {
    match address {
        SHARED_WINDOW..LOCAL_WINDOW => (Space::Shared, address - SHARED_WINDOW),
        LOCAL_WINDOW..PARAM_WINDOW => (Space::Local, address - LOCAL_WINDOW),
        _ if (PARAM_WINDOW..PARAM_WINDOW + WINDOW).contains(&address) => {
            (Space::Param, address - PARAM_WINDOW)
        }
        _ => (Space::Global, address),
    }
}
