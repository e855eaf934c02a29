//! [`Error`]: what a call of this crate can refuse or run into.

use cudarc::driver::DriverError;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did nothing. Each message says what was asked and what would have worked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor's sizes do not agree with those of the other tensors, or with the operation.
    #[error("{op}: {tensor} has {found}, expected {expected}")]
    Shape {
        /// The operation, e.g. `attention::forward`.
        op: &'static str,
        /// The tensor's name in the operation.
        tensor: &'static str,
        /// What would have worked.
        expected: String,
        /// What was given.
        found: String,
    },

    /// A tensor's strides or base address do not suit the kernel's copies.
    #[error("{op}: {tensor} has {found}, expected {expected}")]
    Layout {
        /// The operation, e.g. `attention::forward`.
        op: &'static str,
        /// The tensor's name in the operation.
        tensor: &'static str,
        /// What would have worked.
        expected: String,
        /// What was given.
        found: String,
    },

    /// A number or an option is outside its range.
    #[error("{op}: {argument} is {found}, expected {expected}")]
    Argument {
        /// The operation, e.g. `attention::forward`.
        op: &'static str,
        /// The argument's name.
        argument: &'static str,
        /// What would have worked.
        expected: String,
        /// What was given.
        found: String,
    },

    /// A view's last element lies outside its buffer.
    #[error(
        "a tensor of shape {shape:?} with strides {strides:?} needs {needed} elements, \
         its buffer has {available}"
    )]
    OutOfBounds {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The strides asked for, in elements.
        strides: Vec<usize>,
        /// Elements that the view spans; `usize::MAX` if the number does not fit.
        needed: usize,
        /// Elements in the buffer.
        available: usize,
    },

    /// Two indices of a tensor to write would reach one element.
    #[error(
        "a tensor to write of shape {shape:?} with strides {strides:?} may reach an element twice; \
         each stride must exceed the reach of all smaller ones"
    )]
    SelfOverlap {
        /// The shape asked for.
        shape: Vec<usize>,
        /// The strides asked for, in elements.
        strides: Vec<usize>,
    },

    /// A tensor that the operation writes shares memory with another of its tensors.
    #[error("{op}: {output} overlaps {other} in memory; outputs need memory of their own")]
    Overlap {
        /// The operation, e.g. `attention::forward`.
        op: &'static str,
        /// The tensor that is written.
        output: &'static str,
        /// The other tensor.
        other: &'static str,
    },

    /// A tensor, the stream and the loaded kernels do not belong to one context.
    #[error("{op}: {object} belongs to another CUDA context than the stream")]
    Context {
        /// The operation, e.g. `attention::forward`.
        op: &'static str,
        /// The tensor's name, or `the operation` for its kernels.
        object: &'static str,
    },

    /// There is no kernel for the request.
    #[error("{op}: no kernel for {request}; there is {available}")]
    Unsupported {
        /// The operation, e.g. `attention::forward`.
        op: &'static str,
        /// What was asked.
        request: String,
        /// What exists.
        available: String,
    },

    /// The workspace is smaller than the operation needs.
    #[error(
        "a workspace of {needed} bytes is needed, {reserved} are reserved: call Workspace::reserve first"
    )]
    Workspace {
        /// Bytes that are needed.
        needed: usize,
        /// Bytes that are reserved.
        reserved: usize,
    },

    /// The crate was built without `nvcc`, so it holds no kernels.
    #[error(
        "this build of seqmix holds no kernels, because no nvcc was found when it was compiled: \
         run `cargo xtask toolkit`, or install a CUDA toolkit (12.3 to 13.x) and set NVCC or CUDA_HOME, then build again"
    )]
    KernelsNotBuilt,

    /// The driver refused the kernels' image.
    #[error("cannot load the kernels {unit} (built for {built}): {advice}")]
    Load {
        /// The image that was refused.
        unit: &'static str,
        /// The targets that it was built for.
        built: &'static str,
        /// What to do.
        advice: &'static str,
        /// The driver's error.
        source: DriverError,
    },

    /// No CUDA driver can be used on this machine.
    #[error("no CUDA driver: {reason}")]
    NoDriver {
        /// What was tried and what to do.
        reason: String,
    },

    /// A call of the CUDA driver failed.
    #[error("CUDA driver: {0}")]
    Driver(#[from] DriverError),
}
