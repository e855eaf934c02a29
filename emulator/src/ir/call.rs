//! Calls: functions have registers and a frame of local memory of their own, and parameters that are copied.

use std::ops::Range;

use super::{Pc, Slot};

/// `call`
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub target: CallTarget,
    /// Offset and bytes in the caller's frame of each argument.
    pub arguments: Vec<(u32, u32)>,
    /// The same of what comes back.
    pub results: Vec<(u32, u32)>,
}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallTarget {
    /// Index in [`super::Body::functions`].
    Function(usize),
    /// By an address in a register.
    Indirect(Slot),
    /// `vprintf`: the address of a format and of a buffer of arguments.
    Print,
    /// `__assertfail`: addresses of the condition, the file and the function, and a line.
    AssertFail,
}

/// A function of the program.
#[derive(Debug, Default)]
pub(crate) struct Callee {
    pub name: String,
    /// The number that stands for it in registers and memory.
    pub address: u64,
    pub entry: Pc,
    /// Its registers: what a call into itself must keep.
    pub rows: Range<u32>,
    pub predicates: Range<u32>,
    /// Bytes of parameters, results and local variables.
    pub frame: u32,
    /// Registers that hold addresses in the frame, and the offsets there.
    pub addresses: Vec<(Slot, u32)>,
    pub parameters: Vec<(u32, u32)>,
    pub results: Vec<(u32, u32)>,
    /// It may be called while it runs.
    pub recursive: bool,
}
