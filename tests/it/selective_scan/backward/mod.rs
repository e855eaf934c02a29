//! Gradients. [`cases`] is the table of problems; the other files hold what a single comparison does not show.

mod bare;
mod cases;
mod counters;
mod errors;
mod mutants;
mod properties;

use super::problem::Problem;
use super::{Across, Case, Steps, USUAL, Values, Weight};
use crate::naive::Number;
use crate::support::device;

/// Compares every gradient of a case with the reference.
fn check<T: Number>(case: Case) {
    let stream = device().stream();
    Problem::<T>::new(case, &stream).check_backward(&device().selective_scan);
}
