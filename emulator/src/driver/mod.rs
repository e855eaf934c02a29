//! The CUDA driver API: every `cu*` function that cudarc can ask for, exported from the shared library.
//!
//! One file an area. A function checks its arguments, finds the objects behind its handles and does
//! its work before it returns:
//!
//! | file | area |
//! |---|---|
//! | `symbols` | the list of all functions, those that are not emulated, `cuGetProcAddress` |
//! | `device`, `context`, `limits` | the one device, its attributes, contexts |
//! | `memory`, `pool`, `host`, `managed`, `pointer` | device memory, pools, pinned and managed memory, what a pointer is |
//! | `copy`, `memset` | copies and memsets |
//! | `module`, `function`, `occupancy`, `launch` | images, kernels, launches |
//! | `stream`, `event`, `capture`, `graph`, `work` | order of work, capture and replay |
//! | `tensor_map` | tensor maps |
//! | `error` | codes, names and texts |
//! | `control`, `settings`, `log` | the emulator's own interface |
//! | `state`, `handle`, `ffi` | what is alive, handles, the border to C |
//!
//! # Where it differs from hardware
//! - All work is synchronous: a launch returns when the kernel has ended, and returns its fault. On
//!   hardware the fault comes from a later call.
//! - A fault is not sticky: the context can still be used, so that one process can test many faults.
//!   On hardware all later calls fail until the context is gone; the setting `sticky` does that here,
//!   and lets the launch itself succeed.
//! - Streams have no timing; a missing wait between streams is not noticed.
//! - Events measure no time: `cuEventElapsedTime` is not supported.
//! - A launch whose configuration is wrong is noticed when it runs, not when it is captured.
//! - Pinned and managed memory is the host's, which kernels reach under the same address; what the host wrote there is
//!   not seen, so that unwritten bytes of it are not noticed.
//!
//! # Invariants
//! - No handle is ever followed as a pointer (`handle`).
//! - No panic leaves a function (`ffi::call`).
//! - A code that is returned has a name in CUDA 11.4 (`error::code`).

mod capture;
mod context;
pub(crate) mod control;
mod copy;
mod coverage;
mod device;
mod error;
mod event;
mod ffi;
mod function;
mod graph;
mod handle;
mod host;
mod launch;
mod limits;
mod log;
mod managed;
mod memory;
mod memset;
mod module;
mod occupancy;
mod pointer;
mod pool;
mod settings;
mod state;
mod stream;
mod symbols;
mod tensor_map;
mod work;

pub use settings::Settings;
