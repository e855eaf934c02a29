//! The scan against other ways to write it, and its gradients against finite differences: problems for both.

mod forward;
mod gradients;

use num_complex::Complex64;

use super::{Coefficient, Direction, Forward, Number};
use crate::reference::differences::noise;

/// Numbers that tests draw, and take apart.
trait Draw: Number {
    fn draw(seed: u64, count: usize) -> Vec<Self>;
    fn parts(values: &[Self]) -> Vec<f64>;
    fn whole(parts: &[f64]) -> Vec<Self>;
}

impl Draw for f64 {
    fn draw(seed: u64, count: usize) -> Vec<Self> {
        noise(seed, count)
    }
    fn parts(values: &[Self]) -> Vec<f64> {
        values.to_vec()
    }
    fn whole(parts: &[f64]) -> Vec<Self> {
        parts.to_vec()
    }
}

impl Draw for Complex64 {
    fn draw(seed: u64, count: usize) -> Vec<Self> {
        Self::whole(&noise(seed, 2 * count))
    }
    fn parts(values: &[Self]) -> Vec<f64> {
        values.iter().flat_map(|x| [x.re, x.im]).collect()
    }
    fn whole(parts: &[f64]) -> Vec<Self> {
        let pairs = parts.chunks(2);
        pairs.map(|pair| Self::new(pair[0], pair[1])).collect()
    }
}

/// What a problem borrows.
struct Inputs<S> {
    u: Vec<f64>,
    delta: Vec<f64>,
    a: Vec<S>,
    b: Vec<S>,
    c: Vec<S>,
    d: Vec<f64>,
    z: Vec<f64>,
    delta_bias: Vec<f64>,
    initial_state: Vec<S>,
}

/// Sizes of the problems here.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    dim: usize,
    seqlen: usize,
    dstate: usize,
    groups: usize,
    sequences: usize,
    constant: bool,
}

const SIZES: Sizes = Sizes {
    batch: 2,
    dim: 4,
    seqlen: 5,
    dstate: 3,
    groups: 2,
    sequences: 2,
    constant: false,
};

impl Sizes {
    /// B or C of these numbers.
    fn coefficient<S>(self, values: &[S]) -> Coefficient<'_, S> {
        match self.constant {
            true => Coefficient::Constant(values),
            false => Coefficient::Variable(values),
        }
    }
}

impl<S: Draw> Inputs<S> {
    fn new(sizes: Sizes) -> Self {
        let Sizes {
            batch,
            dim,
            seqlen,
            dstate,
            groups,
            sequences,
            constant,
        } = sizes;
        let steps = batch * dim * seqlen;
        let coefficients = match constant {
            true => dim * dstate,
            false => batch * groups * dstate * seqlen,
        };
        Self {
            u: noise(1, steps),
            delta: noise(2, steps),
            a: S::draw(3, dim * dstate),
            b: S::draw(4, coefficients),
            c: S::draw(5, coefficients),
            d: noise(6, dim),
            z: noise(7, steps),
            delta_bias: noise(8, dim),
            initial_state: S::draw(9, sequences * dim * dstate),
        }
    }

    fn problem(&self, sizes: Sizes) -> Forward<'_, S> {
        Forward {
            batch: sizes.batch,
            dim: sizes.dim,
            seqlen: sizes.seqlen,
            dstate: sizes.dstate,
            groups: sizes.groups,
            u: &self.u,
            delta: &self.delta,
            a: &self.a,
            b: sizes.coefficient(&self.b),
            c: sizes.coefficient(&self.c),
            d: Some(&self.d),
            z: Some(&self.z),
            delta_bias: Some(&self.delta_bias),
            delta_softplus: true,
            initial_state: Some(&self.initial_state),
            cu_seqlens: None,
            direction: Direction::Forward,
        }
    }
}

fn assert_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(
            difference < 1e-12 * expected.abs().max(1.0),
            "{found} is not {expected}"
        );
    }
}
