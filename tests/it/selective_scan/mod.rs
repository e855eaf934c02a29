//! The selective scan. [`problem`] turns a [`Case`] into tensors and judges what comes back; the other files here are
//! tables of cases.

mod backward;
mod bare;
mod counters;
mod errors;
mod expected;
mod forward;
mod mutants;
mod problem;
mod queue;
mod scans;
mod step;

use seqmix::selective_scan::{Config, Direction, Numbers};

/// Sizes and options of one problem.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    dim: usize,
    seqlen: usize,
    /// States of a channel; complex ones are two floats each.
    dstate: usize,
    groups: usize,
    config: Config,
    /// How u and what is like it lies.
    elements: Lie,
    /// How B and C lie; none: they are constant.
    b: Option<Lie>,
    c: Option<Lie>,
    /// Elements that each row in memory is longer than it need be.
    padding: usize,
    /// Elements that each tensor begins after a multiple of 16 bytes.
    shift: usize,
    d: Option<Weight>,
    delta_bias: Option<Weight>,
    z: bool,
    /// Whether the state before the scan is given, and the gradient of the one after it.
    states: bool,
    /// Sequences of different lengths.
    cu_seqlens: Option<&'static [i32]>,
    /// Whether the forward pass keeps states for the backward pass.
    checkpoints: bool,
    values: Values,
}

/// How large the inputs are, as multiples of normal numbers.
#[derive(Clone, Copy, Debug)]
struct Values {
    u: f64,
    z: f64,
    /// B and C.
    coefficients: f64,
    dout: f64,
    /// Step sizes up to 100, and A from -1e-4 to -1e4.
    stiff: bool,
}

const USUAL: Values = Values {
    u: 1.0,
    z: 1.0,
    coefficients: 1.0,
    dout: 1.0,
    stiff: false,
};

/// Which axis lies contiguously.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// Steps.
    Steps,
    /// The other one: channels of u, states of B and C.
    Across,
}
use Lie::{Across, Steps};

/// The type of D or delta_bias.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weight {
    F32,
    Same,
}

/// What mamba-ssm does by default.
const MAMBA: Config = Config {
    numbers: Numbers::Real,
    delta_softplus: true,
    direction: Direction::Forward,
    segments: Some(1),
};

impl Case {
    /// A Mamba layer of this size.
    fn of(batch: usize, dim: usize, seqlen: usize, dstate: usize) -> Self {
        Self {
            batch,
            dim,
            seqlen,
            dstate,
            groups: 1,
            config: MAMBA,
            elements: Steps,
            b: Some(Steps),
            c: Some(Steps),
            padding: 0,
            shift: 0,
            d: Some(Weight::F32),
            delta_bias: Some(Weight::F32),
            z: true,
            states: true,
            cu_seqlens: None,
            checkpoints: false,
            values: USUAL,
        }
    }

    /// Nothing but the recurrence.
    fn bare(batch: usize, dim: usize, seqlen: usize, dstate: usize) -> Self {
        Self {
            config: Config {
                delta_softplus: false,
                ..MAMBA
            },
            d: None,
            delta_bias: None,
            z: false,
            states: false,
            ..Self::of(batch, dim, seqlen, dstate)
        }
    }

    fn segments(self, segments: usize) -> Self {
        let config = Config {
            segments: Some(segments),
            ..self.config
        };
        Self { config, ..self }
    }

    fn reversed(self) -> Self {
        let config = Config {
            direction: Direction::Reverse,
            ..self.config
        };
        Self { config, ..self }
    }

    fn complex(self) -> Self {
        let config = Config {
            numbers: Numbers::Complex,
            ..self.config
        };
        Self { config, ..self }
    }

    /// All tensors lie across.
    fn across(self) -> Self {
        Self {
            elements: Across,
            b: self.b.map(|_| Across),
            c: self.c.map(|_| Across),
            ..self
        }
    }

    /// Floats of a channel's state.
    fn floats(&self) -> usize {
        self.dstate * if self.is_complex() { 2 } else { 1 }
    }

    fn is_complex(&self) -> bool {
        self.config.numbers == Numbers::Complex
    }

    fn is_reversed(&self) -> bool {
        self.config.direction == Direction::Reverse
    }

    fn sequences(&self) -> usize {
        self.cu_seqlens.map_or(self.batch, |cu| cu.len() - 1)
    }
}
