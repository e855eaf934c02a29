//! Linear attention through its public API.

mod backward;
mod gradient_counters;
mod gradient_mutants;
mod gradients;
mod step;
