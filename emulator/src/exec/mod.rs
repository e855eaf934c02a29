//! Runs a launch: blocks over host threads, warps of a block in turn, operations lane by lane.

mod access;
mod atomic;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod block;
mod bulk;
mod call;
mod cluster;
mod context;
mod convert;
mod copy;
mod descriptor;
mod element;
mod exact;
mod exchange;
mod float;
mod global;
mod hopper;
mod integer;
mod interpret;
mod lanes;
mod matrix;
mod mbarrier;
mod memory;
mod printf;
mod product;
mod reads;
mod registers;
mod rounding;
mod schedule;
mod tensor;
mod tensor_map;
mod together;
mod traffic;
mod video;
mod warp;
mod wgmma;

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, PoisonError};

use crate::device::Device;
use crate::fault::{Fault, FaultKind};
use crate::ir::{Constant, Special};
use crate::memory::{Allocations, Memory};
use crate::module::{Kernel, Module};
use crate::occupancy;
use crate::race::{Flags, WARP_LIMIT};
use crate::report::Report;

pub use schedule::Schedule;
use schedule::Turns;

/// Bytes of local memory that a thread may have, on every device.
const MAX_LOCAL: u32 = 512 << 10;

/// A kernel launch.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The module that holds the kernel.
    pub module: &'a Module,
    /// The kernel's name.
    pub kernel: &'a str,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The most that the function's attribute allows, in bytes.
    pub dynamic_shared_limit: u32,
    /// The parameters, laid out as [`Kernel::params`] says.
    pub params: &'a [u8],
    /// All blocks are resident at once and may wait for each other.
    pub cooperative: bool,
    /// Bytes of local memory that functions which call themselves may take.
    pub stack_bytes: u32,
    /// Blocks of a cluster along x, y and z; `None` leaves it to the kernel.
    pub cluster: Option<[u32; 3]>,
}

impl<'a> Launch<'a> {
    /// A launch without parameters and dynamic shared memory, with the stack that a context begins with.
    pub fn new(module: &'a Module, kernel: &'a str, grid: [u32; 3], block: [u32; 3]) -> Self {
        Self {
            module,
            kernel,
            grid,
            block,
            dynamic_shared: 0,
            dynamic_shared_limit: 0,
            params: &[],
            cooperative: false,
            stack_bytes: 1024,
            cluster: None,
        }
    }
}

/// How launches are run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Host threads that blocks are spread over.
    pub threads: usize,
    /// How the lanes of a diverged warp take turns.
    pub schedule: Schedule,
    /// Warp instructions after which a launch counts as hung.
    pub max_instructions: u64,
    /// Mistakes that are let pass.
    pub forgiven: Forgiven,
    /// Judge races on global memory.
    pub global_races: bool,
}

/// Mistakes by the manual that hardware lets pass, and that programs of others are known to make: no faults where they are
/// forgiven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forgiven {
    /// A bulk copy tells an mbarrier whose initialisation no fence has shown the async proxy: in what Triton compiles.
    pub unfenced_mbarriers: bool,
    /// Shared memory is read that nobody wrote, which has any value: in the merge sort of CUB.
    pub unwritten_shared: bool,
}

/// From their names, with commas between them: `unfenced-mbarriers,unwritten-shared`.
impl FromStr for Forgiven {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut forgiven = Forgiven::default();
        for name in text.split(',').filter(|name| !name.is_empty()) {
            match name {
                "unfenced-mbarriers" => forgiven.unfenced_mbarriers = true,
                "unwritten-shared" => forgiven.unwritten_shared = true,
                _ => {
                    return Err(format!(
                        "`{name}` cannot be forgiven; there are unfenced-mbarriers and unwritten-shared"
                    ));
                }
            }
        }
        Ok(forgiven)
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            schedule: Schedule::LowestPc,
            max_instructions: 1 << 36,
            forgiven: Forgiven::default(),
            global_races: true,
        }
    }
}

/// What all blocks of a launch share.
struct Shared<'l> {
    launch: &'l Launch<'l>,
    kernel: &'l Kernel,
    device: &'l Device,
    options: &'l Options,
    allocations: &'l Allocations,
    /// Address of the memory that a cooperative launch synchronises by; 0 for other launches.
    workspace: u64,
    /// Blocks along x, y and z that run together: 1 without clusters.
    cluster: [u32; 3],
    /// Slots and values of the constants that are the same in every lane and block.
    constants: Vec<(crate::ir::Slot, crate::ir::Constant, u64)>,
    /// Warp instructions of all blocks so far.
    spent: AtomicU64,
    stop: AtomicBool,
    turns: Turns,
    /// What strong accesses have left beside global memory.
    flags: Mutex<Flags>,
}

/// Runs a launch to its end.
///
/// # Errors
/// The fault of the lowest block that any host thread had met when the launch was stopped.
pub fn launch(
    launch: &Launch<'_>,
    device: &Device,
    memory: &Memory,
    options: &Options,
) -> Result<Report, Fault> {
    let kernel = check(launch, device)?;
    let _alone = memory.one_launch();
    let workspace = Workspace::new(launch, kernel, memory)?;
    let allocations = memory.lock();
    let cluster = cluster(launch, kernel);
    let blocks: u64 = (0..3)
        .map(|axis| u64::from(launch.grid[axis] / cluster[axis]))
        .product();
    let shared = Shared {
        launch,
        kernel,
        device,
        options,
        allocations: &allocations,
        workspace: workspace.address,
        cluster,
        constants: constants(launch, kernel),
        spent: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        turns: Turns::new(blocks, options.schedule),
        flags: Mutex::default(),
    };
    let workers = options
        .threads
        .max(1)
        .min(usize::try_from(blocks).unwrap_or(usize::MAX));
    let reports = Mutex::new(Vec::new());
    let faults = Mutex::new(Vec::new());
    let work = || {
        let (report, fault) = shared.worker(workers as u64);
        reports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(report);
        if let Some(fault) = fault {
            faults
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(fault);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    drop(allocations);
    let (read, written) = memory.take_marks();
    let mut faults = faults.into_inner().unwrap_or_else(PoisonError::into_inner);
    faults.sort_by_key(|&(block, _)| block);
    let reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    for part in &reports {
        print!("{}", part.printed);
    }
    if let Some((_, fault)) = faults.into_iter().next() {
        return Err(fault);
    }
    let (major, minor) = device.compute_capability;
    let mut report = Report {
        kernel: kernel.name.clone(),
        device: format!("sm_{major}{minor}"),
        grid: launch.grid,
        block: launch.block,
        shared_bytes: kernel.shared_bytes(launch.dynamic_shared),
        registers: launch.module.program().registers(launch.kernel),
        ..Report::default()
    };
    for part in &reports {
        report.add(part);
    }
    report.global_loads.unique_bytes = read;
    report.global_stores.unique_bytes = written;
    Ok(report)
}

/// 16 bytes of zeros in global memory, where a kernel that synchronises its grid keeps the count of blocks.
struct Workspace<'m> {
    memory: &'m Memory,
    address: u64,
}

impl<'m> Workspace<'m> {
    fn new(launch: &Launch<'_>, kernel: &Kernel, memory: &'m Memory) -> Result<Self, Fault> {
        let asks = |&(_, constant): &(_, Constant)| {
            matches!(constant, Constant::Special(Special::Workspace { .. }))
        };
        let mut workspace = Workspace { memory, address: 0 };
        if !launch.cooperative || !kernel.body.constants.iter().any(asks) {
            return Ok(workspace);
        }
        let made = memory.alloc(16).and_then(|address| {
            workspace.address = address;
            memory.write(address, &[0; 16])
        });
        match made {
            Ok(()) => Ok(workspace),
            Err(error) => Err(Fault {
                kind: FaultKind::Resources,
                kernel: launch.kernel.into(),
                thread: None,
                site: None,
                message: format!("no memory to synchronise the grid by: {error}"),
                others: Vec::new(),
            }),
        }
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        if self.address != 0 {
            // it was allocated by `new`, and kernels cannot free
            let _ = self.memory.free(self.address);
        }
    }
}

impl Kernel {
    /// Static and dynamic shared memory of a block in bytes.
    fn shared_bytes(&self, dynamic: u32) -> u32 {
        if dynamic == 0 {
            self.static_shared
        } else {
            self.static_shared.next_multiple_of(16) + dynamic
        }
    }
}

/// Holds a launch to the limits of the device.
fn check<'l>(launch: &'l Launch<'_>, device: &Device) -> Result<&'l Kernel, Fault> {
    let fault = |kind: FaultKind, message: String| Fault {
        kind,
        kernel: launch.kernel.into(),
        thread: None,
        site: None,
        message,
        others: Vec::new(),
    };
    let refuse = |message: String| Err(fault(FaultKind::Configuration, message));
    let lacks = |message: String| Err(fault(FaultKind::Resources, message));
    let Some(kernel) = launch.module.program().kernel(launch.kernel) else {
        return refuse(format!("the module has no kernel `{}`", launch.kernel));
    };
    let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
    if launch.grid.contains(&0) || threads == 0 {
        return refuse(format!(
            "an empty launch: grid {:?}, block {:?}",
            launch.grid, launch.block
        ));
    }
    if threads > u64::from(device.max_threads_per_block)
        || (0..3).any(|axis| launch.block[axis] > device.max_block[axis])
    {
        let most = device.max_threads_per_block;
        return refuse(format!(
            "a block of {:?} threads; the device allows {most} in all and {:?}",
            launch.block, device.max_block
        ));
    }
    if let Some(most) = kernel.max_threads.filter(|&most| threads > u64::from(most)) {
        return refuse(format!(
            "a block of {threads} threads; the kernel is compiled for at most {most} (.maxntid)"
        ));
    }
    if (0..3).any(|axis| launch.grid[axis] > device.max_grid[axis]) {
        return refuse(format!(
            "a grid of {:?} blocks; the device allows {:?}",
            launch.grid, device.max_grid
        ));
    }
    let limit = launch
        .dynamic_shared_limit
        .min(device.shared_per_block_optin);
    if launch.dynamic_shared > limit {
        return refuse(format!(
            "{} bytes of dynamic shared memory; the function's attribute MAX_DYNAMIC_SHARED_SIZE_BYTES allows {limit}",
            launch.dynamic_shared
        ));
    }
    let total = kernel.shared_bytes(launch.dynamic_shared);
    if total > device.shared_per_block_optin {
        let most = device.shared_per_block_optin;
        return refuse(format!(
            "{total} bytes of static and dynamic shared memory; the device allows {most}"
        ));
    }
    let registers = launch.module.program().registers(launch.kernel);
    let block = occupancy::Block {
        threads,
        shared: total.into(),
        registers,
    };
    if let Some(registers) = registers.filter(|_| !block.registers_suffice(device)) {
        let most = device.registers_per_block;
        return lacks(format!(
            "a block of {threads} threads of {registers} registers each; the device allows {most} in all"
        ));
    }
    if kernel.local_bytes > MAX_LOCAL {
        let bytes = kernel.local_bytes;
        return lacks(format!(
            "{bytes} bytes of local memory a thread; devices have {MAX_LOCAL}"
        ));
    }
    if kernel.param_bytes() > device.max_parameter_bytes {
        let (bytes, most) = (kernel.param_bytes(), device.max_parameter_bytes);
        return refuse(format!(
            "{bytes} bytes of parameters; the device allows {most}"
        ));
    }
    if (launch.params.len() as u64) < u64::from(kernel.param_bytes()) {
        let (found, needed) = (launch.params.len(), kernel.param_bytes());
        return refuse(format!(
            "{found} bytes of parameters; the kernel takes {needed}"
        ));
    }
    if let (Some(asked), Some(required)) = (launch.cluster, kernel.cluster)
        && asked != required
    {
        return refuse(format!(
            "clusters of {asked:?} blocks; the kernel is compiled for {required:?} (.reqnctapercluster)"
        ));
    }
    let cluster = cluster(launch, kernel);
    let blocks = (cluster.iter()).fold(1u32, |product, &n| product.saturating_mul(n));
    if blocks != 1 && device.max_cluster < blocks || blocks == 0 {
        return refuse(format!(
            "clusters of {cluster:?} blocks; the device allows {}",
            device.max_cluster
        ));
    }
    if (0..3).any(|axis| !launch.grid[axis].is_multiple_of(cluster[axis])) {
        return refuse(format!(
            "a grid of {:?} blocks, which is no multiple of the clusters of {cluster:?}",
            launch.grid
        ));
    }
    if blocks as usize * threads.div_ceil(32) as usize > WARP_LIMIT {
        return lacks(format!(
            "a cluster of {blocks} blocks of {threads} threads; the race detector tells {WARP_LIMIT} warps apart"
        ));
    }
    if kernel.body.ops.len() >= 1 << 24 {
        return lacks(format!(
            "{} instructions; the race detector tells 16,777,215 apart",
            kernel.body.ops.len()
        ));
    }
    Ok(kernel)
}

/// The blocks of a cluster: 1 where there are none.
fn cluster(launch: &Launch<'_>, kernel: &Kernel) -> [u32; 3] {
    launch.cluster.or(kernel.cluster).unwrap_or([1; 3])
}

/// The values of constants that do not depend on the lane or the block.
fn constants(launch: &Launch<'_>, kernel: &Kernel) -> Vec<(crate::ir::Slot, Constant, u64)> {
    let param = |at: u32, bytes: usize| {
        let mut out = [0; 8];
        let at = at as usize;
        if let Some(source) = launch.params.get(at..at + bytes) {
            out[..bytes].copy_from_slice(source);
        }
        u64::from_le_bytes(out)
    };
    let value = |constant: Constant| match constant {
        Constant::Word(word) => word.into(),
        Constant::Double(double) => double,
        Constant::Param32(at) => param(at, 4),
        Constant::Param64(at) => param(at, 8),
        Constant::Global { .. } => launch.module.address(constant).unwrap_or(0),
        Constant::Special(_) => 0,
    };
    kernel
        .body
        .constants
        .iter()
        .map(|&(slot, constant)| (slot, constant, value(constant)))
        .collect()
}

impl<'l> Shared<'l> {
    /// Coordinates of block `rank` of cluster number `index` of the grid.
    fn place(&self, index: u64, rank: u32) -> [u32; 3] {
        let cluster = self.cluster;
        let [cx, cy, _]: [u64; 3] =
            std::array::from_fn(|axis| (self.launch.grid[axis] / cluster[axis]).into());
        [
            (index % cx) as u32 * cluster[0] + rank % cluster[0],
            (index / cx % cy) as u32 * cluster[1] + rank / cluster[0] % cluster[1],
            (index / cx / cy) as u32 * cluster[2] + rank / cluster[0] / cluster[1],
        ]
    }

    /// Coordinates of a thread of a block.
    fn thread(&self, number: usize) -> [u32; 3] {
        let [x, y, _] = self.launch.block.map(|side| side as usize);
        [number % x, number / x % y, number / x / y].map(|at| at as u32)
    }

    /// Bytes of local memory a thread, with the frames of functions.
    fn local_bytes(&self) -> u32 {
        let functions = &self.kernel.body.functions;
        let recursive = functions.iter().any(|function| function.recursive);
        self.kernel.local_bytes
            + if recursive {
                self.launch.stack_bytes
            } else {
                0
            }
    }
}
