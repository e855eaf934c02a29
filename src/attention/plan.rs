//! [`Plan`]: which kernel runs a problem, and on how many blocks. Pure.

use super::problem::Problem;
use crate::abi::attention::Forward;
use crate::error::{Error, Result};

/// A kernel and its grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    /// Index in the rows that were given.
    pub(super) row: usize,
    /// Tiles of query rows, heads, sequences.
    pub(super) grid: [usize; 3],
}

impl Plan {
    /// Plans `problem` with the first of `rows` that can run it.
    pub(super) fn forward(op: &'static str, problem: &Problem, rows: &[Forward]) -> Result<Self> {
        // `Problem` holds no negative head_dim
        let head_dim = problem.head_dim as usize;
        let fits = |row: &Forward| row.dtype == problem.dtype && row.dim >= head_dim;
        let Some(row) = rows.iter().position(fits) else {
            let dims = rows.iter().filter(|row| row.dtype == problem.dtype);
            let available = match dims.map(|row| row.dim).max() {
                Some(largest) => format!("head_dim up to {largest} on this GPU"),
                None => "no kernel of this type that fits this GPU".into(),
            };
            return Err(Error::Unsupported {
                op,
                request: format!("{} head_dim {}", problem.dtype.name(), problem.head_dim),
                available,
            });
        };
        let (tile_q, _) = rows[row].tile;
        let tiles = problem.longest_q.div_ceil(tile_q);
        Ok(Self {
            row,
            grid: [tiles, problem.heads, problem.batch],
        })
    }
}
