//! A software CUDA driver: it loads PTX and runs it on the CPU, checks every access, and counts what it costs.
//!
//! Programs that use the driver API through a dynamic library (cudarc does) run on it unchanged: see [`select`] and
//! [`install`]. It is for correctness and for counting, and never reports a time.
//!
//! # What it finds
//! - accesses out of bounds, misaligned, to freed memory, or of bytes that nobody wrote: global, shared and local memory;
//! - races on shared memory between barriers, within a warp too;
//! - races on global memory, within a block and between blocks: what only chance orders, by the PTX memory model;
//! - reads of bytes that a `cp.async` or a bulk copy is still writing, writes to bytes that one is still reading;
//! - the async proxy reading what no `fence.proxy.async` has shown it;
//! - registers and tiles of a `wgmma` that are touched before its wait, or without a `wgmma.fence` before it;
//! - deadlocks, barriers that not all threads reach, `.sync` instructions that diverged lanes never reach together;
//! - launches that ask for more than the device has.
//!
//! A [`Fault`] names the kernel, block, thread, PTX line, CUDA source line (compile with `-lineinfo`) and the other access.
//!
//! # What it does not see
//! It runs PTX, not SASS: mistakes of ptxas and the reordering of weak memory operations stay invisible. Tensor cores
//! and approximate functions round within the documented bounds, not bit for bit as hardware does. Launches of two
//! streams never overlap, so that they do not race.
//!
//! # Hopper
//! On a device that poses as sm_90: mbarriers in all forms; `cp.async.bulk` between global memory, shared memory and
//! the shared memory of a cluster, with multicast and reductions; tensor maps of rank 1 to 5 with every swizzle of
//! 16-byte chunks, element strides and both fills; clusters of up to 8 blocks with their barrier, `mapa` and accesses
//! to each other's memory; tensor maps that a kernel makes (`tensormap.replace`); `wgmma` of f16, bf16, tf32, both
//! 8-bit floats and 8-bit integers, with operands in every layout, A in registers too; `setmaxnreg`, `elect.sync`,
//! `stmatrix`. Not emulated, and refused by name: im2col and interleaved tensor maps, packed elements, sparse `wgmma`,
//! `st.async` and `red.async`, clusters of 16.
//!
//! What is asynchronous ends as late as the program allows, or at random in an adversarial [`Schedule`]. Products are
//! computed at their issue, from what shared memory holds then; that nobody changes it before their end is judged. An
//! mbarrier that a bulk copy tells must have been shown to the async proxy, by `fence.mbarrier_init` or
//! `fence.proxy.async`; a block must not exit while another may still reach into its memory. Where `.maxnreg` says what a
//! block has, a `setmaxnreg.inc` waits until others have given enough back.
//!
//! # Life of a launch
//! `cuModuleLoadData` picks the PTX of the device posed as (`image`), parses it (`syntax`) and lowers it to flat operations
//! on register slots (`lower`, `ir`). `cuLaunchKernel` holds the launch to the device's limits, spreads blocks over host
//! threads and runs each warp until it waits (`exec`); memory (`memory`) and the race detector (`race`) judge every
//! access. Counters add up to a [`Report`]; the first mistake ends the launch with a [`Fault`].
//!
//! # Invariants
//! The emulator knows no kernel. An operand is always a slot. An unknown opcode is an error at load, never a guess.

mod class;
mod cost;
mod device;
mod driver;
mod exec;
mod fault;
mod gpu;
mod image;
mod install;
mod ir;
mod lower;
mod memory;
mod module;
mod occupancy;
mod race;
mod report;
mod syntax;
mod tensor_map;

pub use class::{Class, MatrixKind};
pub use cost::{Bound, Cost, Occupancy, Resource};
pub use device::Device;
pub use driver::Settings;
pub use exec::{Forgiven, Launch, Options, Schedule, launch};
pub use fault::{Fault, FaultKind, Site};
pub use gpu::{Gpu, Rates};
pub use image::{ImageError, ptx, registers};
pub use install::{
    Driver, InstallError, configure, install, select, take_faults, take_reports,
    take_thread_faults, take_thread_reports,
};
pub use memory::{Memory, MemoryError};
pub use module::{Kernel, LoadError, Module, Param, Program};
pub use occupancy::Limit;
pub use report::{GlobalTraffic, Report, SharedTraffic};
pub use syntax::ParseError;
pub use tensor_map::{TENSOR_MAP_BYTES, TensorMap, TensorType};
