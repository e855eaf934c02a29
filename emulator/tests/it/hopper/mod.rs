//! What came with Hopper, beyond single instructions: boxes of tensors, warpgroup products, whole pipelines.

pub(crate) mod gemm;
mod tensor;
mod tensor_replace;
mod wgmma;
mod wgmma_faults;
mod wgmma_layout;
