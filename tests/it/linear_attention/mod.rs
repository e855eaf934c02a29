//! Linear attention through its public API, judged by the reference.

mod backward;
mod gradients;
