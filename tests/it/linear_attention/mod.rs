//! Linear attention through its public API.

mod step;
