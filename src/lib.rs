//! Hand-written CUDA kernels for sequence models, called from safe Rust.
//!
//! What exists so far is the forward pass of softmax attention ([`attention`]), matrix multiplication
//! with fused epilogues ([`gemm`]), and of state space models the causal convolution
//! ([`causal_conv1d`]) and the forward pass of Mamba-2's layer ([`ssd`]), for every NVIDIA GPU since
//! Ampere; and the recurrences of RWKV-4 ([`rwkv4`]), of RWKV-7 ([`rwkv7`]) and of linear recurrent units ([`lru`]).
//! Each operation has a plain `f64` version in [`mod@reference`] to compare with. [`state_space`] is the theory that layers like
//! Mamba's begin with, on the CPU.
//!
//! ```no_run
//! use half::f16;
//! use seqmix::Tensor;
//! use seqmix::attention::{Attention, Bias, Config, Forward, Mask};
//!
//! # fn main() -> seqmix::Result<()> {
//! let ctx = seqmix::context(0)?;
//! let stream = ctx.default_stream();
//! let attention = Attention::new(&ctx)?; // loads the kernels: once, not for each call
//!
//! // [batch, seq, heads, head_dim]; two query heads share each head of k and v
//! let q = Tensor::from_host(&stream, &vec![f16::ONE; 2 * 100 * 8 * 64], [2, 100, 8, 64])?;
//! let k = Tensor::from_host(&stream, &vec![f16::ONE; 2 * 100 * 4 * 64], [2, 100, 4, 64])?;
//! let v = Tensor::from_host(&stream, &vec![f16::ONE; 2 * 100 * 4 * 64], [2, 100, 4, 64])?;
//! let mut out = Tensor::zeros(&stream, q.shape())?;
//!
//! let config = Config { mask: Mask::Causal, ..Config::default() };
//! let tensors = Forward {
//!     q: q.view(),
//!     k: k.view(),
//!     v: v.view(),
//!     out: out.view_mut(),
//!     lse: None,
//!     bias: Bias::default(),
//! };
//! attention.forward(&stream, config, tensors)?; // queued
//! let out: Vec<f16> = out.to_host(&stream)?; // waits
//! assert_eq!(out[0], f16::ONE);
//! # Ok(())
//! # }
//! ```
//!
//! # For those who know CPUs
//!
//! | on a CPU | on a GPU | here |
//! | --- | --- | --- |
//! | process | context | [`context`] |
//! | `Vec<T>`, `&[T]`, `&mut [T]` | device memory | [`Tensor`], [`TensorRef`], [`TensorMut`] |
//! | a queue of work for one worker | stream | `cudarc::driver::CudaStream` |
//! | a function called on each item of work | kernel | a row of a table in [`abi`] |
//! | a core with its SIMD lanes | multiprocessor with its warps | tile sizes in that table |
//! | L1 cache that you fill yourself | shared memory | `Smem` in `kernels/` |
//! | `.so` of machine code | fatbin | [`images`] |
//!
//! # What a call does
//!
//! A call checks its tensors on the host, queues one or a few kernels on the given stream and
//! returns before they run. An `Err` means that no kernel was queued. What a kernel itself runs into
//! is reported by a later call that waits for the stream, such as [`Tensor::to_host`].
//!
//! - Calls allocate nothing on the device. Outputs are the caller's; scratch, where an operation needs
//!   some, is the caller's [`Workspace`]. So calls can be captured into CUDA graphs, with cudarc's
//!   event tracking turned off before the tensors are allocated.
//! - Calls on one stream run in order. Between streams cudarc's events order reads and writes of a
//!   tensor, unless they were turned off; tensors may be dropped while kernels use them.
//! - Results are deterministic: the same inputs give the same bits on the same device.
//! - Lengths and indices that live on the device are clamped by the kernels, never trusted.
//!
//! # Without a GPU, without nvcc
//!
//! [`context`] returns [`Error::NoDriver`] where there is no CUDA driver. A build without nvcc works
//! and holds no kernels: loading them returns [`Error::KernelsNotBuilt`], which says what to do.

pub mod abi;
pub mod attention;
pub mod causal_conv1d;
mod check;
mod driver;
mod error;
pub mod gated_attention_unit;
pub mod gemm;
mod images;
mod launch;
pub mod linear_attention;
pub mod lru;
mod recurrence;
pub mod reference;
pub mod rwkv4;
pub mod rwkv7;
pub mod selective_scan;
pub mod ssd;
pub mod state_space;
mod tensor;
mod workspace;

pub use cudarc;
pub use num_complex;

pub use driver::context;
pub use error::{Error, Result};
pub use images::{Image, KernelInfo, images, kernels};
pub use tensor::{Dtype, Element, Float, Half, Tensor, TensorMut, TensorRef};
pub use workspace::Workspace;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
