//! Linear attention.

mod backward;
mod forward;
mod layer;
mod step;

use std::error::Error;

use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound};

pub(crate) use backward::BackwardShape;
pub(crate) use forward::ForwardShape;
pub(crate) use step::StepShape;

/// Steps that are compared with the reference.
const STEPS: usize = 65;

/// What the kernels lose where a naive run in `f32` loses nothing, in roundings of `f32`.
const ROUNDINGS: f64 = 256.0;

/// Judges a tensor by what a naive run loses.
fn judge<T: Number>(
    name: &str,
    found: &[f64],
    exact: &[f64],
    naive: &[f64],
) -> Result<(), Box<dyn Error>> {
    let bound = bound::<T>(exact, naive, 1)?;
    let largest = exact.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let within = Bound {
        max_abs: 1.5 * bound.max_abs + ROUNDINGS * <f32 as Number>::UNIT * largest,
        rel_l2: None,
        row_rel_l2: None,
    };
    let verdict = Verdict::of(found, exact, 1, within);
    match verdict.pass() {
        true => Ok(()),
        false => Err(format!("{name}: {verdict}").into()),
    }
}
