//! Theory of state space models as host code: how A, B and the step sizes of a layer begin, and how a system in
//! continuous time becomes the recurrence that a scan computes.
//!
//! A linear state space model is
//!
//! ```text
//! x'(t) = A x(t) + B u(t),    y(t) = C x(t)
//! ```
//!
//! | what | where | source |
//! | --- | --- | --- |
//! | A, B that remember a signal | [`Dense::hippo_legs`], [`LegsMemory`] | Gu et al., "HiPPO", 2020 |
//! | its normal part, and that diagonalised | [`legs_low_rank`], [`s4d_legs`] | Gu et al., "S4", 2021 |
//! | diagonal A | [`s4d_lin`], [`s4d_inv`], [`s4d_real`] | Gu et al., "S4D", 2022 |
//! | step sizes | [`StepSizes`], [`inverse_softplus`] | Gu and Dao, "Mamba", 2023 |
//! | eigenvalues on a ring, normalised | [`Ring`] | Orvieto et al., "LRU", 2023 |
//! | from continuous to discrete time | [`Discretization`] | Gu et al., "S4", 2021 |
//!
//! Everything here is plain `f64` on the CPU, meant for a model's first moments and for study; it is no fast path.
//! Random numbers come from a seed: the same seed gives the same numbers on every machine.
//!
//! ```
//! use seqmix::state_space::{StepSizes, s4d_real};
//!
//! // Mamba's layer of 4 channels with 16 states: A of each channel, and the bias that softplus makes a step size of.
//! let a: Vec<f64> = s4d_real(16).repeat(4);
//! let delta_bias = StepSizes::default().biases(4, 1)?;
//! assert_eq!(a[..3], [-1.0, -2.0, -3.0]);
//! # assert_eq!(delta_bias.len(), 4);
//! # Ok::<(), seqmix::Error>(())
//! ```

mod dense;
mod diagonal;
mod discretize;
mod eigen;
mod hippo;
mod lru;
mod matrix;
mod random;
mod step_size;

pub use dense::Dense;
pub use diagonal::{s4d_inv, s4d_legs, s4d_lin, s4d_real};
pub use discretize::{Diagonal, Discretization};
pub use hippo::{LegsMemory, legs_low_rank};
pub use lru::{Ring, RingState};
pub use matrix::SquareMatrix;
pub use step_size::{StepSizes, inverse_softplus};
