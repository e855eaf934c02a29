//! Linear attention through its public API, judged by the reference.

mod bare;
mod counters;
mod errors;
mod forward;
mod layer;
mod mutants;
mod queue;
mod step;
