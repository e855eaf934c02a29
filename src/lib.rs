//! seqmix: hand-written CUDA kernels for sequence models, called from safe Rust.

pub mod abi;
pub mod attention;
mod driver;
mod error;
mod images;
mod launch;
pub mod reference;
mod tensor;
mod workspace;

pub use cudarc;

pub use driver::context;
pub use error::{Error, Result};
pub use images::{Image, KernelInfo, images, kernels};
pub use tensor::{Dtype, Element, Half, Tensor, TensorMut, TensorRef};
pub use workspace::Workspace;
