//! What a kernel did wrong, where, and against what: the text of a fault is what this crate is for.

use std::fmt;

/// What kind of mistake it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside every live allocation, or outside the block's shared memory.
    OutOfBounds,
    /// An address that is not a multiple of the access.
    Misaligned,
    /// A read of bytes that nobody wrote.
    Uninitialised,
    /// Two accesses to the same bytes, one of them a write, without a barrier between them.
    Race,
    /// An access to bytes of a cp.async that was not waited for.
    MissingWait,
    /// Warps wait for each other and none can go on.
    Deadlock,
    /// A barrier or a .sync instruction that not all of its threads reach together.
    Divergence,
    /// The launch has sizes that device or kernel do not allow.
    Configuration,
    /// The launch asks for more registers or local memory than the device has.
    Resources,
    /// The kernel executed trap, or an operand that the manual forbids.
    Trap,
    /// The kernel's own assertion failed.
    Assert,
    /// Functions that call themselves need more local memory than the limit on the stack.
    StackOverflow,
    /// The launch ran longer than the limit on instructions.
    Timeout,
}

impl FaultKind {
    /// The number of the driver's result: `CUDA_ERROR_ILLEGAL_ADDRESS` and so on.
    pub fn code(self) -> i32 {
        match self {
            FaultKind::Configuration => 1,
            FaultKind::OutOfBounds => 700,
            FaultKind::Misaligned => 716,
            FaultKind::Resources => 701,
            FaultKind::Timeout => 702,
            FaultKind::Trap => 715,
            FaultKind::Assert => 710,
            FaultKind::StackOverflow => 714,
            FaultKind::Uninitialised
            | FaultKind::Race
            | FaultKind::MissingWait
            | FaultKind::Deadlock
            | FaultKind::Divergence => 719,
        }
    }

    /// Whether the kernel ran before: such a fault costs the context on hardware. Other launches never begin.
    pub fn is_of_kernel(self) -> bool {
        !matches!(self, FaultKind::Configuration | FaultKind::Resources)
    }

    /// The words a fault starts with.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::OutOfBounds => "out of bounds",
            FaultKind::Misaligned => "misaligned",
            FaultKind::Uninitialised => "uninitialised read",
            FaultKind::Race => "race",
            FaultKind::MissingWait => "missing wait",
            FaultKind::Deadlock => "deadlock",
            FaultKind::Divergence => "divergence",
            FaultKind::Configuration => "configuration",
            FaultKind::Resources => "resources",
            FaultKind::Trap => "trap",
            FaultKind::Assert => "assertion failed",
            FaultKind::StackOverflow => "stack overflow",
            FaultKind::Timeout => "timeout",
        }
    }
}

/// A place in a kernel's code.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    /// Line in the PTX text, from 1; 0 is unknown.
    pub ptx_line: u32,
    /// The instruction.
    pub instruction: String,
    /// File and line of the CUDA source, where the PTX says (`nvcc -lineinfo`).
    pub source: Option<(String, u32)>,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.source {
            write!(f, "{file}:{line}, ")?;
        }
        write!(f, "PTX line {}: {}", self.ptx_line, self.instruction)
    }
}

/// A mistake of a kernel or of its launch.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What kind of mistake.
    pub kind: FaultKind,
    /// The kernel's name.
    pub kernel: String,
    /// Block and thread; `None` for faults of the launch as a whole.
    pub thread: Option<([u32; 3], [u32; 3])>,
    /// The instruction.
    pub site: Option<Box<Site>>,
    /// What happened, in a sentence.
    pub message: String,
    /// The other access of a race, or what every warp of a deadlock waits at.
    pub others: Vec<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}\n  kernel {}",
            self.kind.name(),
            self.message,
            self.kernel
        )?;
        if let Some(([bx, by, bz], [tx, ty, tz])) = self.thread {
            write!(f, ", block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz})")?;
        }
        if let Some(site) = &self.site {
            write!(f, "\n  at {site}")?;
        }
        for other in &self.others {
            write!(f, "\n  {other}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
