//! Linear attention.

mod forward;
mod step;

pub(crate) use forward::ForwardShape;
pub(crate) use step::StepShape;
