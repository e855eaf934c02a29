//! What came with Hopper, beyond single instructions: boxes of tensors, warpgroup products, whole pipelines.

mod tensor;
mod wgmma;
