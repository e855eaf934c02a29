//! Linear attention.

mod step;

pub(crate) use step::StepShape;
