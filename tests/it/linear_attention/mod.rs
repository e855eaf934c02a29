//! Linear attention through its public API.

mod backward;
mod gradients;
mod step;
