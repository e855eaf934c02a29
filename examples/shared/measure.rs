//! How far a result lies from what was expected, judged by the rule of tests/golden/SCHEMA.md.

use std::fmt;

/// What a result may lose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// Largest difference of one element.
    pub(crate) max_abs: f64,
    /// Norm of the difference over the norm of what was expected, over the whole tensor.
    pub(crate) rel_l2: Option<f64>,
    /// The same for every vector along the last axis: it finds one lost key or one bad tail tile.
    pub(crate) row_rel_l2: Option<f64>,
}

/// A result beside its bound. Displays as one line: each measure with its bound, then `ok` or `FAIL`.
pub(crate) struct Verdict {
    bound: Bound,
    difference: Result<Difference, String>,
}

/// The measures of [`Bound`], and the element that differs most.
pub(crate) struct Difference {
    pub(crate) max_abs: f64,
    pub(crate) rel_l2: f64,
    pub(crate) row_rel_l2: f64,
    worst: usize,
    found: f64,
    expected: f64,
}

/// A row much shorter than the others is measured against this share of their root mean square.
const SHORTEST_ROW: f64 = 0.05;

impl Verdict {
    /// Compares `found` with `expected`, whose last axis has `row` elements.
    pub(crate) fn of(found: &[f64], expected: &[f64], row: usize, bound: Bound) -> Self {
        Self {
            bound,
            difference: Difference::measure(found, expected, row),
        }
    }

    /// Whether every measure keeps its bound.
    pub(crate) fn pass(&self) -> bool {
        let Bound {
            max_abs,
            rel_l2,
            row_rel_l2,
        } = self.bound;
        self.difference.as_ref().is_ok_and(|d| {
            d.max_abs <= max_abs
                && rel_l2.is_none_or(|bound| d.rel_l2 <= bound)
                && row_rel_l2.is_none_or(|bound| d.row_rel_l2 <= bound)
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            max_abs,
            rel_l2,
            row_rel_l2,
            worst,
            found,
            expected,
        } = match &self.difference {
            Ok(difference) => difference,
            Err(reason) => return write!(f, "{reason} FAIL"),
        };
        write!(
            f,
            "max_abs {max_abs:.3e} (bound {:.3e})",
            self.bound.max_abs
        )?;
        match self.bound.rel_l2 {
            Some(bound) => write!(f, " rel_l2 {rel_l2:.3e} (bound {bound:.3e})")?,
            None => write!(f, " rel_l2 {rel_l2:.3e} (no bound)")?,
        }
        if let Some(bound) = self.bound.row_rel_l2 {
            write!(f, " row_rel_l2 {row_rel_l2:.3e} (bound {bound:.3e})")?;
        }
        if self.pass() {
            write!(f, " ok")
        } else {
            write!(
                f,
                " worst at element {worst}: found {found:e}, expected {expected:e} FAIL"
            )
        }
    }
}

impl Difference {
    /// Where `expected` is not finite, `found` has to be equal; everything else is measured.
    pub(crate) fn measure(found: &[f64], expected: &[f64], row: usize) -> Result<Self, String> {
        if found.len() != expected.len() {
            return Err(format!(
                "{} elements, expected {}",
                found.len(),
                expected.len()
            ));
        }
        let wrong = |(a, e): (&f64, &f64)| {
            if e.is_finite() {
                !a.is_finite()
            } else {
                a != e
            }
        };
        if let Some(at) = found.iter().zip(expected).position(wrong) {
            return Err(format!(
                "element {at} is {}, expected {}",
                found[at], expected[at]
            ));
        }
        let error = |at: usize| {
            if expected[at].is_finite() {
                (found[at] - expected[at]).abs()
            } else {
                0.0
            }
        };
        let size = |at: usize| {
            if expected[at].is_finite() {
                expected[at]
            } else {
                0.0
            }
        };
        let norm = |from: usize, to: usize, of: &dyn Fn(usize) -> f64| {
            (from..to).map(|at| of(at) * of(at)).sum::<f64>().sqrt()
        };
        let all = expected.len();
        let worst = (0..all)
            .max_by(|&a, &b| error(a).total_cmp(&error(b)))
            .unwrap_or(0);
        let total = norm(0, all, &size);
        let rows = all.div_ceil(row.max(1));
        let shortest = SHORTEST_ROW * total / (rows.max(1) as f64).sqrt();
        let row_rel_l2 = (0..rows).map(|at| {
            let (from, to) = (at * row, ((at + 1) * row).min(all));
            share(norm(from, to, &error), norm(from, to, &size).max(shortest))
        });
        Ok(Self {
            max_abs: if all > 0 { error(worst) } else { 0.0 },
            rel_l2: share(norm(0, all, &error), total),
            row_rel_l2: row_rel_l2.fold(0.0, f64::max),
            worst,
            found: found.get(worst).copied().unwrap_or(0.0),
            expected: expected.get(worst).copied().unwrap_or(0.0),
        })
    }
}

/// `error / size`; where nothing but 0 was expected, the error itself has to be 0.
fn share(error: f64, size: f64) -> f64 {
    match (error > 0.0, size > 0.0) {
        (false, _) => 0.0,
        (true, false) => f64::INFINITY,
        (true, true) => error / size,
    }
}
