//! Linear attention through its public API, judged by the reference.

mod backward;
mod bare;
mod channel_gradients;
mod counters;
mod errors;
mod forward;
mod gradient_counters;
mod gradient_mutants;
mod gradients;
mod layer;
mod models;
mod mutants;
mod normalized_gradients;
mod queue;
mod step;
