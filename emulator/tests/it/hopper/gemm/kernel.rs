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
const TILE: usize = 128 * SIDE;

/// Marks of the products of a step.
const PRODUCT_MARKS: [&str; 4] = [
    " // first product",
    " // product",
    " // product",
    " // last product",
];

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
    fn stage(&self) -> usize {
        TILE * (self.groups + 1)
    }

    /// Where C is gathered, and where the mbarriers begin.
    fn c(&self) -> usize {
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
    fn corner(&self, what: &str) -> String {
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
    fn stage_bars(&self) -> String {
        format!(
            "    mad.lo.u32 %full, %slot, 8, %bars;\n    add.u32 %empty, %full, {};\n",
            8 * self.stages
        )
    }

    /// On to the next stage; behind the last comes the first, in the other parity. `who` is part of the marks.
    fn next_stage(&self, who: &str) -> String {
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

    /// The other warpgroups: the products of a tile, and its way out.
    fn consumer(&self) -> String {
        let registers = match self.groups {
            1 => 240,
            _ => 232,
        };
        let (products, last) = match self.a {
            Source::Shared => (self.products_of_tiles(), self.last_products()),
            Source::Registers => (self.products_of_registers(), String::new()),
        };
        format!(
            "
consume:
    setmaxnreg.inc.sync.aligned.u32 {registers}; // registers to take
    mov.u32 %id, %group;
    sub.u32 %group, %group, 1;
    setp.eq.u32 %lead, %lane, 0;
    and.b32 %v, %thread, 127;
    setp.eq.u32 %storer, %v, 0;
{places}    mov.u32 %parity, 0; // first phase
compute:
    setp.ge.u32 %p, %tile, %count;
    @%p bra finish;
    mov.u32 %step, 0;
multiply:
{bars}there:
    mbarrier.try_wait.parity.shared::cta.b64 %p, [%full], %parity; // ask for a full stage
    @!%p bra there; // stage is there
    mad.lo.u32 %to, %slot, {stage}, %base; // stage to multiply
    mad.lo.u32 %v, %group, {TILE}, %to;
    add.u32 %to, %to, {after_a}; // B to multiply
{products}{next}    add.u32 %step, %step, 1;
    setp.lt.u32 %p, %step, %steps; // steps to multiply
    @%p bra multiply;
{last}",
            places = self.places(),
            bars = self.stage_bars(),
            stage = self.stage(),
            after_a = self.groups * TILE,
            next = self.next_stage("consumer"),
        )
    }

    /// Where a lane's rows of A and its results lie: lane 4 r + c of a warp holds columns 2 c and 2 c + 1 of rows r and r + 8.
    fn places(&self) -> String {
        let peer = match self.cluster {
            1 => "",
            _ => "    xor.b32 %peer, %rank, 1; // the other block\n",
        };
        format!(
            "{peer}    mad.lo.u32 %box, %group, {TILE}, %base;
    add.u32 %box, %box, {c}; // box of C
    shr.u32 %turn, %lane, 2;
    mad.lo.u32 %v, %warp, 16, %turn;
    mad.lo.u32 %cell, %v, 128, %box; // row of C
    and.b32 %v, %lane, 3;
    mad.lo.u32 %cell, %v, 4, %cell; // cell of C
    shr.u32 %half, %lane, 4;
",
            c = self.c()
        )
    }

    /// One wgmma; `adds` is the predicate by which it adds to what the registers hold.
    fn product(&self, a: &str, mark: &str) -> String {
        let sums: Vec<String> = (0..32).map(|at| format!("%d{at}")).collect();
        let element = self.element;
        // the layout of A is a choice only in shared memory
        let major = match (self.a, self.b) {
            (Source::Shared, Major::K) => "0, 0",
            (Source::Shared, Major::N) => "0, 1",
            (Source::Registers, Major::K) => "0",
            (Source::Registers, Major::N) => "1",
        };
        format!(
            "    wgmma.mma_async.sync.aligned.m64n{SIDE}k16.f32.{element}.{element} {{{}}}, {a}, %db, %adds, 1, 1, {major};{mark}\n",
            sums.join(", ")
        )
    }

    /// The descriptor `to` of the tile at the address in `from`: lines of 128 bytes, 1024 bytes from eight rows to the next.
    fn descriptor(&self, to: &str, from: &str, mark: &str) -> String {
        format!(
            "    shr.u32 %x, {from}, 4;
    cvt.u64.u32 {to}, %x;
    or.b64 {to}, {to}, 0x4000004000010000;{mark}
"
        )
    }

    /// What leads a descriptor of B to the next 16 of K, in units of 16 bytes.
    fn b_step(&self) -> usize {
        match self.b {
            Major::K => 32 / 16,
            Major::N => 16 * 128 / 16,
        }
    }

    /// The products of a step, A from shared memory: four, and those of the step before are waited for.
    fn products_of_tiles(&self) -> String {
        let mut text = self.descriptor("%da", "%v", " // layout of A");
        text += &self.descriptor("%db", "%to", " // layout of B");
        text += "    setp.ne.u32 %adds, %step, 0; // first step begins anew\n    wgmma.fence.sync.aligned; // registers are ready\n";
        for part in 0..4 {
            if part == 1 {
                text += "    setp.eq.u32 %adds, %step, %step;\n";
            }
            if part != 0 {
                let mark = if part == 1 { " // columns of B" } else { "" };
                text += "    add.s64 %da, %da, 2;\n";
                text += &format!("    add.s64 %db, %db, {};{mark}\n", self.b_step());
            }
            text += &self.product("%da", PRODUCT_MARKS[part]);
        }
        text += "    wgmma.commit_group.sync.aligned; // commit
    wgmma.wait_group.sync.aligned 1; // step before is done
    setp.ne.and.u32 %frees, %step, 0, %lead;
";
        text += &self.free("%frees", "%used", "stage before");
        text + "    mov.u32 %used, %empty; // stage to free\n"
    }

    /// The end of a tile's products, A from shared memory.
    fn last_products(&self) -> String {
        let free = self.free("%lead", "%used", "last stage");
        format!("    wgmma.wait_group.sync.aligned 0; // product is there\n{free}")
    }

    /// The products of a step, A from registers: each warp brings its 16 rows, and waits before it brings the next.
    fn products_of_registers(&self) -> String {
        // lane l names row l % 16 and half l / 16 of 16 columns; the swizzle goes by the row's last three bits
        let mut text = "    and.b32 %x, %lane, 15;
    mad.lo.u32 %x, %warp, 16, %x;
    mad.lo.u32 %v, %x, 128, %v; // row of A
    and.b32 %low, %lane, 7; // turn of A
"
        .to_string();
        for part in 0..4 {
            let mark = ["first", "rows", "rows", "last"][part];
            text += &format!(
                "    or.b32 %x, %half, {};
    xor.b32 %x, %x, %low;{}
    mad.lo.u32 %x, %x, 16, %v;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%a{}, %a{}, %a{}, %a{}}}, [%x]; // {mark} of A\n",
                2 * part,
                if part == 1 { " // swizzle of A" } else { "" },
                4 * part,
                4 * part + 1,
                4 * part + 2,
                4 * part + 3,
            );
        }
        text += &self.descriptor("%db", "%to", " // layout of B");
        text += "    setp.ne.u32 %adds, %step, 0; // first step begins anew\n    wgmma.fence.sync.aligned; // registers are ready\n";
        for part in 0..4 {
            if part == 1 {
                text += "    setp.eq.u32 %adds, %step, %step;\n";
            }
            if part != 0 {
                let mark = if part == 1 { " // columns of B" } else { "" };
                text += &format!("    add.s64 %db, %db, {};{mark}\n", self.b_step());
            }
            let a: Vec<String> = (4 * part..4 * part + 4)
                .map(|at| format!("%a{at}"))
                .collect();
            let mark = PRODUCT_MARKS[part];
            text += &self.product(&format!("{{{}}}", a.join(", ")), mark);
        }
        text += "    wgmma.commit_group.sync.aligned; // commit
    wgmma.wait_group.sync.aligned 0; // product is there
    bar.warp.sync 0xffffffff; // rows of A are read
";
        text + &self.free("%lead", "%empty", "last stage")
    }

    /// A warp is done with a stage: it tells the producers that fill it.
    fn free(&self, who: &str, at: &str, mark: &str) -> String {
        let own = format!(
            "    @{who} mbarrier.arrive.release.cta.shared::cta.b64 _, [{at}]; // {mark}\n"
        );
        if self.cluster == 1 {
            return own;
        }
        own.replace("release.cta", "release.cluster")
            + &format!(
                "    mapa.shared::cluster.u32 %far, {at}, %peer; // {mark} of the other
    @{who} mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%far]; // {mark} there
"
            )
    }

    /// A warpgroup's part of C: into shared memory in the order of the tensor map's swizzle, and out.
    fn store(&self) -> String {
        let mut cells = String::new();
        for block in 0..8 {
            let mark = if block == 0 {
                " // first cells"
            } else {
                " // cells"
            };
            cells += &format!(
                "    xor.b32 %v, %turn, {block};
    mad.lo.u32 %to, %v, 16, %cell;
    cvt.rn.{element}x2.f32 %v, %d{}, %d{};{}
    st.shared.b32 [%to], %v;{mark}
    cvt.rn.{element}x2.f32 %v, %d{}, %d{};
    st.shared.b32 [%to+1024], %v; // cells
",
                4 * block + 1,
                4 * block,
                if block == 0 { " // first result" } else { "" },
                4 * block + 3,
                4 * block + 2,
                element = self.element,
            );
        }
        format!(
            "
    @%storer cp.async.bulk.wait_group.read 0; // C has left
    bar.sync %id, 128; // C is free
{cells}    fence.proxy.async.shared::cta; // C is shown
    bar.sync %id, 128; // C is complete
{corner}    mad.lo.u32 %row, %group, {SIDE}, %row;
    @%storer cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%map_c, {{%column, %row}}], [%box]; // store
    @%storer cp.async.bulk.commit_group; // commit of C
    add.u32 %tile, %tile, %stride;
    bra compute;
finish:
    @%storer cp.async.bulk.wait_group.read 0; // last C has left
",
            corner = self.corner("store"),
        )
    }

    /// No block of a cluster goes while others reach into its memory.
    fn end(&self) -> String {
        let meet = match self.cluster {
            1 => "",
            _ => {
                "    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned; // nobody goes early\n"
            }
        };
        format!("done:\n{meet}    ret;\n")
    }
}
