//! The text of a matrix multiplication as Hopper wants it: C[M, N] = A[M, K] B[N, K]^T in 16-bit floats with f32 sums.
//!
//! Warpgroup 0 brings tiles by tensor maps into a ring of stages; each other warpgroup multiplies 64 rows by 64 columns of
//! them by wgmma and stores its part of C through shared memory by a tensor map. Blocks walk over the tiles of C, so that
//! ring and phases go on from tile to tile. A full mbarrier a stage counts the bytes that have come, an empty one the warps
//! that are done with them.
//!
//! Comments at the right end of a line are marks: mistakes are planted there, and found there.

/// Rows and columns that a warpgroup computes, and columns of A and B that a stage holds: 128 bytes of each row.
pub(crate) const SIDE: usize = 64;
/// Bytes of 64 rows of 128 bytes.
pub(super) const TILE: usize = 128 * SIDE;

/// Where the warpgroups take A from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Source {
    /// A descriptor names it in shared memory; one step's products are under way while the next begins.
    Shared,
    /// ldmatrix brings it from the swizzled tile into registers.
    Registers,
}

/// How B lies in global and in shared memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Major {
    /// [N, K]
    K,
    /// [K, N]
    N,
}

/// A variant of the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gemm {
    pub(crate) name: &'static str,
    /// `f16` or `bf16`.
    pub(crate) element: &'static str,
    pub(crate) a: Source,
    pub(crate) b: Major,
    /// Blocks of a cluster, 1 or 2: they compute tiles below each other, and each brings half of the B of both.
    pub(crate) cluster: usize,
    /// Warpgroups that multiply.
    pub(crate) groups: usize,
    pub(crate) stages: usize,
}

impl Gemm {
    pub(crate) fn threads(&self) -> usize {
        128 * (1 + self.groups)
    }

    /// Rows of C that a block computes at a time.
    pub(crate) fn rows(&self) -> usize {
        SIDE * self.groups
    }

    /// Rows of a box of B: of [N, K] the part that a block brings, of [K, N] all.
    pub(crate) fn b_rows(&self) -> usize {
        SIDE / self.cluster
    }

    /// Bytes of a stage: rows of A, then 64 rows of B.
    pub(super) fn stage(&self) -> usize {
        TILE * (self.groups + 1)
    }

    /// Where C is gathered, and where the mbarriers begin.
    pub(super) fn c(&self) -> usize {
        self.stages * self.stage()
    }

    fn bars(&self) -> usize {
        self.c() + self.groups * TILE
    }

    /// Bytes of shared memory.
    pub(crate) fn shared(&self) -> usize {
        self.bars() + 16 * self.stages
    }

    pub(crate) fn text(&self) -> String {
        let (registers, directive) = match self.cluster {
            1 => ("", String::new()),
            _ => (
                ", %peer, %far",
                format!(
                    ".explicitcluster\n.reqnctapercluster {}, 1, 1\n",
                    self.cluster
                ),
            ),
        };
        let pieces = [
            self.setup(),
            self.producer(),
            self.consumer(),
            self.store(),
            self.end(),
        ];
        format!(
            "\
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 tiles[];

// steps of 64 columns of A and B, tiles from left to right, tiles in all
.visible .entry case(.param .align 64 .b8 map_a[128], .param .align 64 .b8 map_b[128], .param .align 64 .b8 map_c[128],
    .param .u32 steps, .param .u32 across, .param .u32 count)
.maxnreg {start}
{directive}{{
    .reg .b16 %both;
    .reg .b32 %thread, %lane, %warp, %group, %base, %bars, %rank, %tile, %stride, %steps, %across, %count{registers};
    .reg .b32 %slot, %parity, %step, %full, %empty, %used, %to, %row, %column, %x, %v, %id, %box, %cell, %turn, %half, %low;
    .reg .b32 %a<16>;
    .reg .b64 %map_a, %map_b, %map_c, %da, %db;
    .reg .f32 %d<32>;
    .reg .pred %p, %lead, %storer, %adds, %frees;
{}}}
",
            pieces.concat(),
            // what the warpgroups share out: a multiple of 8 of the registers of a multiprocessor
            start = 65536 / self.threads().max(384) / 8 * 8,
        )
    }

    /// Who is who, and the mbarriers.
    fn setup(&self) -> String {
        let (rank, first, stride, meet) = match self.cluster {
            1 => ("0", "%ctaid.x", "%nctaid.x", "bar.sync 0;"),
            _ => (
                "%cluster_ctarank",
                "%clusterid.x",
                "%nclusterid.x",
                "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
            ),
        };
        let warps = 4 * self.groups * self.cluster;
        let bars: String = (0..self.stages)
            .map(|stage| {
                let (full, empty) = match stage {
                    0 => (" // full", " // empty"),
                    _ => ("", ""),
                };
                format!(
                    "    mbarrier.init.shared::cta.b64 [%bars+{}], 1;{full}\n    mbarrier.init.shared::cta.b64 [%bars+{}], {warps};{empty}\n",
                    8 * stage,
                    8 * (self.stages + stage)
                )
            })
            .collect();
        format!(
            "
    mov.b64 %map_a, map_a;
    cvta.param.u64 %map_a, %map_a;
    mov.b64 %map_b, map_b;
    cvta.param.u64 %map_b, %map_b;
    mov.b64 %map_c, map_c;
    cvta.param.u64 %map_c, %map_c;
    ld.param.u32 %steps, [steps];
    ld.param.u32 %across, [across];
    ld.param.u32 %count, [count];
    mov.u32 %thread, %tid.x;
    and.b32 %lane, %thread, 31;
    shr.u32 %group, %thread, 7;
    shr.u32 %warp, %thread, 5;
    and.b32 %warp, %warp, 3;
    mov.u32 %base, tiles;
    add.u32 %bars, %base, {bars_at};
    mov.u32 %rank, {rank};
    mov.u32 %tile, {first};
    mov.u32 %stride, {stride};
    mov.u32 %slot, 0;
    setp.ne.u32 %p, %thread, 0;
    @%p bra ready;
{bars}    fence.mbarrier_init.release.cluster; // mbarriers are shown
ready:
    {meet} // mbarriers are there
    setp.ne.u32 %p, %group, 0;
    @%p bra consume;
",
            bars_at = self.bars(),
        )
    }

    /// Row and column of C at which the block's tile begins.
    pub(super) fn corner(&self, what: &str) -> String {
        let below = match self.cluster {
            1 => String::new(),
            blocks => format!("    mad.lo.u32 %row, %row, {blocks}, %rank; // tile to {what}\n"),
        };
        format!(
            "    div.u32 %row, %tile, %across;
    mul.lo.u32 %column, %row, %across;
    sub.u32 %column, %tile, %column;
{below}    mul.lo.u32 %row, %row, {};
    mul.lo.u32 %column, %column, {SIDE};
",
            self.rows()
        )
    }

    /// The mbarriers of the stage at hand.
    pub(super) fn stage_bars(&self) -> String {
        format!(
            "    mad.lo.u32 %full, %slot, 8, %bars;\n    add.u32 %empty, %full, {};\n",
            8 * self.stages
        )
    }

    /// On to the next stage; behind the last comes the first, in the other parity. `who` is part of the marks.
    pub(super) fn next_stage(&self, who: &str) -> String {
        format!(
            "    add.u32 %slot, %slot, 1;
    setp.eq.u32 %p, %slot, {}; // {who} wraps
    @%p mov.u32 %slot, 0;
    @%p xor.b32 %parity, %parity, 1; // {who} turns
",
            self.stages
        )
    }

    /// Warpgroup 0: one thread brings what the others multiply.
    fn producer(&self) -> String {
        let copy = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes";
        let corner_of_b = match self.b {
            Major::K => "{%x, %v}",
            Major::N => "{%v, %x}",
        };
        let b = match self.cluster {
            1 => format!(
                "    mov.u32 %v, %column;\n    {copy} [%to], [%map_b, {corner_of_b}], [%full]; // copy of B\n"
            ),
            // this block's rows of B go to both
            _ => format!(
                "    mad.lo.u32 %v, %rank, {rows}, %column;
    mad.lo.u32 %to, %rank, {bytes}, %to; // half of B
    mov.u16 %both, {all}; // both blocks
    {copy}.multicast::cluster [%to], [%map_b, {corner_of_b}], [%full], %both; // copy of B
",
                rows = self.b_rows(),
                bytes = 128 * self.b_rows(),
                all = (1 << self.cluster) - 1,
            ),
        };
        format!(
            "
    // the tiles, stage by stage
    setmaxnreg.dec.sync.aligned.u32 40; // registers to give
    setp.ne.u32 %p, %warp, 0;
    @%p bra done;
    elect.sync %v|%lead, 0xffffffff;
    @!%lead bra done; // one thread copies
    mov.u32 %parity, 1; // first round is free
bring:
    setp.ge.u32 %p, %tile, %count;
    @%p bra done;
{corner}    mov.u32 %step, 0;
bring_step:
{bars}free:
    mbarrier.try_wait.parity.shared::cta.b64 %p, [%empty], %parity; // ask for a free stage
    @!%p bra free; // stage is free
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%full], {stage}; // expect
    mad.lo.u32 %to, %slot, {stage}, %base; // stage of A
    mul.lo.u32 %x, %step, {SIDE};
    {copy} [%to], [%map_a, {{%x, %row}}], [%full]; // copy of A
    add.u32 %to, %to, {after_a}; // stage of B
{b}{next}    add.u32 %step, %step, 1;
    setp.lt.u32 %p, %step, %steps; // steps to bring
    @%p bra bring_step;
    add.u32 %tile, %tile, %stride;
    bra bring;
",
            corner = self.corner("bring"),
            bars = self.stage_bars(),
            stage = self.stage(),
            after_a = self.groups * TILE,
            next = self.next_stage("producer"),
        )
    }
}
