//! The warpgroups that multiply: products of a tile, and its way out through shared memory.

use super::kernel::{Gemm, Major, SIDE, Source, TILE};

/// Marks of the products of a step.
const PRODUCT_MARKS: [&str; 4] = [
    " // first product",
    " // product",
    " // product",
    " // last product",
];

impl Gemm {
    /// The other warpgroups: the products of a tile, and its way out.
    pub(super) fn consumer(&self) -> String {
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

    /// Four products, 16 of K each; `a` names the part of A.
    fn products(&self, a: impl Fn(usize) -> String) -> String {
        let mut text = "    setp.ne.u32 %adds, %step, 0; // first step begins anew
    wgmma.fence.sync.aligned; // registers are ready
"
        .to_string();
        for (part, mark) in PRODUCT_MARKS.into_iter().enumerate() {
            if part == 1 {
                text += "    setp.eq.u32 %adds, %step, %step;\n";
            }
            if part != 0 {
                let mark = if part == 1 { " // columns of B" } else { "" };
                text += &format!("    add.s64 %db, %db, {};{mark}\n", self.b_step());
            }
            if part != 0 && self.a == Source::Shared {
                text += "    add.s64 %da, %da, 2;\n";
            }
            text += &self.product(&a(part), mark);
        }
        text + "    wgmma.commit_group.sync.aligned; // commit\n"
    }

    /// The products of a step, A from shared memory; those of the step before are waited for.
    fn products_of_tiles(&self) -> String {
        let mut text = self.descriptor("%da", "%v", " // layout of A");
        text += &self.descriptor("%db", "%to", " // layout of B");
        text += &self.products(|_| "%da".into());
        text += "    wgmma.wait_group.sync.aligned 1; // step before is done
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
        text += &self.products(|part| {
            let registers: Vec<String> = (4 * part..4 * part + 4)
                .map(|at| format!("%a{at}"))
                .collect();
            format!("{{{}}}", registers.join(", "))
        });
        text += "    wgmma.wait_group.sync.aligned 0; // product is there
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
    pub(super) fn store(&self) -> String {
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
    pub(super) fn end(&self) -> String {
        let meet = match self.cluster {
            1 => "",
            _ => {
                "    barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned; // nobody goes early\n"
            }
        };
        format!("done:\n{meet}    ret;\n")
    }
}
