//! Linear attention.

mod forward;

pub(crate) use forward::ForwardShape;
