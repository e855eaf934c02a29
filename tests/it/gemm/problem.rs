//! [`Problem`]: the tensors of a case on the device, surrounded by poison.

use std::sync::Arc;

use seqmix::cudarc::driver::CudaStream;
use seqmix::gemm::{self, Gemm, Multiply, Plan};
use seqmix::{Result, Workspace};

use super::{Addend, Case, Epilogue, Groups, Rows, Stored};
use crate::naive::{Number, normal};
use crate::support::{Place, Placed};

/// What counters hold before a call, which adds to them.
pub(super) const COUNTED: i32 = 1000;

/// Around what is written.
const GUARD: f64 = -123.0;

/// Factor of an adapter.
pub(super) const ADAPTER_SCALE: f32 = 0.75;

/// A tensor on the device, and its numbers; those of a matrix that is repeated stand there as often.
pub(super) struct Drawn<E, const N: usize> {
    pub(super) placed: Placed<E, N>,
    pub(super) host: Vec<f64>,
}

impl<E: Number, const N: usize> Drawn<E, N> {
    /// Seeded numbers of mean 0, surrounded by `poison`.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        place: Place<N>,
        deviation: f64,
        seed: u64,
        poison: f64,
    ) -> Self {
        let repeats = match place.strides[0] {
            0 => place.shape[0],
            _ => 1,
        };
        let count = place.shape.iter().product::<usize>() / repeats.max(1);
        let numbers = normal::<E>(seed, count, deviation).repeat(repeats);
        Self {
            placed: Placed::input(stream, place, &numbers, E::narrow(poison)),
            host: numbers.into_iter().map(Into::into).collect(),
        }
    }
}

/// The tensors: their bits in [`Case::uneven`], and what their numbers are drawn from.
const A: u32 = 1;
const B: u32 = 2;
const GATE: u32 = 3;
const DOWN: u32 = 4;
const UP: u32 = 5;
const ROW_SCALE: u32 = 6;
const COLUMN_SCALE: u32 = 7;
const C: u32 = 8;
const BIAS: u32 = 9;
const GATE_BIAS: u32 = 10;
const RESIDUAL: u32 = 11;
const PREACTIVATION: u32 = 12;
const RESULT: u32 = 13;

/// All of them.
pub(super) const TENSORS: std::ops::RangeInclusive<u32> = A..=RESULT;

/// A problem on the device, with d in `D`.
pub(super) struct Problem<T, D> {
    pub(super) case: Case,
    pub(super) a: Drawn<T, 3>,
    pub(super) b: Drawn<T, 3>,
    pub(super) weights: Option<Drawn<T, 3>>,
    pub(super) down: Option<Drawn<T, 3>>,
    pub(super) up: Option<Drawn<T, 3>>,
    pub(super) row_scale: Option<Drawn<f32, 2>>,
    pub(super) column_scale: Option<Drawn<f32, 2>>,
    pub(super) c: Option<Drawn<D, 3>>,
    pub(super) bias: Option<Drawn<T, 2>>,
    pub(super) gate_bias: Option<Drawn<T, 2>>,
    pub(super) residual: Option<Drawn<T, 3>>,
    /// What a backward epilogue reads.
    pub(super) preactivation: Option<Drawn<T, 3>>,
    /// What a forward one writes.
    saved: Option<Placed<T, 3>>,
    column_sums: Option<Placed<f32, 1>>,
    non_finite: Option<Placed<i32, 1>>,
    offsets: Option<Placed<i32, 1>>,
    d: Placed<D, 3>,
}

impl<T: Number, D: Number> Problem<T, D> {
    /// A problem of seeded inputs, surrounded by NaN; outputs are NaN, surrounded by a number that must stay.
    pub(super) fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        let Case { m, n, k, extra, .. } = case;
        let Batches {
            a,
            b,
            vectors,
            results,
        } = case.batches();
        let backward = case.is_backward();
        let gated = case.epilogue == Epilogue::Gate;
        // so that products are of the size of what is added to them
        let deep = |depth: usize| 1.0 / (depth.max(1) as f64).sqrt();

        let matrix = |which, shape, stored, deviation, shared| {
            let place = case.only(which).place(shape, stored);
            let place = if shared { repeated(place) } else { place };
            Drawn::<T, 3>::new(stream, place, deviation, which as u64, f64::NAN)
        };
        let weights = |which, padded_as| {
            let padded = case.only(padded_as);
            let place = Case {
                padding: padded.padding,
                ..case.only(which)
            };
            let place = place.place([b, k, n], case.b);
            let place = if case.shared_b {
                repeated(place)
            } else {
                place
            };
            Drawn::<T, 3>::new(stream, place, deep(k), which as u64, f64::NAN)
        };
        let vectors = if extra.one_vector { 1 } else { vectors };
        let bias = |which| {
            let place = case.only(which).place_vectors([vectors, n]);
            Drawn::<T, 2>::new(stream, place, 1.0, which as u64, f64::NAN)
        };
        let scale = |which, shape| {
            let place = case.only(which).place_vectors(shape);
            Drawn::<f32, 2>::new(stream, place, 1.0, which as u64, f64::NAN)
        };
        let of_d = [results, m, n];
        let draw_c = |place, poison| Drawn::<D, 3>::new(stream, place, 1.0, C as u64, poison);
        let saved = [results, m, case.saved_columns()];
        let all_rows = if extra.one_vector { 1 } else { results };
        let offsets = match case.groups {
            Groups::None => None,
            Groups::Rows(offsets) | Groups::K(offsets) => Some(offsets),
        };
        Self {
            case,
            a: matrix(A, [a, m, k], case.a, 1.0, case.shared_a),
            b: weights(B, B),
            // lies as b does
            weights: gated.then(|| weights(GATE, B)),
            down: extra.adapter.map(|low| {
                let shape = [b, k, low.rank];
                matrix(DOWN, shape, low.down, deep(k), case.shared_b)
            }),
            up: extra.adapter.map(|low| {
                let shape = [b, low.rank, n];
                matrix(UP, shape, low.up, deep(low.rank), case.shared_b)
            }),
            row_scale: extra.row_scale.then(|| scale(ROW_SCALE, [all_rows, m])),
            column_scale: extra
                .column_scale
                .then(|| scale(COLUMN_SCALE, [vectors, n])),
            c: (extra.c != Addend::None).then(|| draw_c(case.only(C).place(of_d, Rows), f64::NAN)),
            bias: extra.bias.then(|| bias(BIAS)),
            gate_bias: (gated && extra.gate_bias).then(|| bias(GATE_BIAS)),
            residual: extra
                .residual
                .then(|| matrix(RESIDUAL, of_d, Rows, 1.0, false)),
            preactivation: backward.then(|| matrix(PREACTIVATION, saved, Rows, 1.0, false)),
            saved: (extra.preactivation && !backward).then(|| {
                let place = case.only(PREACTIVATION).place(saved, Rows);
                Placed::output(stream, place, T::narrow(f64::NAN), T::narrow(GUARD))
            }),
            column_sums: extra.column_sums.then(|| {
                let place = Place::contiguous([n]);
                Placed::output(stream, place, f32::NAN, GUARD as f32)
            }),
            non_finite: extra
                .non_finite
                .then(|| Placed::input(stream, Place::contiguous([1]), &[COUNTED], -1)),
            offsets: offsets.map(|offsets| {
                let place = Place::contiguous([offsets.len()]);
                Placed::input(stream, place, offsets, i32::MAX)
            }),
            d: match extra.c {
                Addend::InPlace => draw_c(case.only(RESULT).place(of_d, Rows), GUARD).placed,
                Addend::None | Addend::Tensor => {
                    let place = case.only(RESULT).place([results, m, case.columns()], Rows);
                    Placed::output(stream, place, D::narrow(f64::NAN), D::narrow(GUARD))
                }
            },
        }
    }

    /// How the op would run.
    pub(super) fn plan(&mut self, gemm: &Gemm, stream: &Arc<CudaStream>) -> Result<Plan> {
        let config = self.case.config;
        gemm.plan(stream, config, &mut self.tensors())
    }

    /// Memory for a call.
    pub(super) fn workspace(&mut self, gemm: &Gemm, stream: &Arc<CudaStream>) -> Result<Workspace> {
        let plan = self.plan(gemm, stream)?;
        let mut workspace = Workspace::new(stream);
        workspace.reserve(plan.workspace_bytes())?;
        Ok(workspace)
    }

    /// Queues the op.
    pub(super) fn queue(
        &mut self,
        gemm: &Gemm,
        stream: &Arc<CudaStream>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let config = self.case.config;
        gemm.multiply(stream, config, self.tensors(), workspace)
    }

    /// Queues the op, with memory of its own.
    pub(super) fn run(&mut self, gemm: &Gemm, stream: &Arc<CudaStream>) -> Result<()> {
        let mut workspace = self.workspace(gemm, stream)?;
        self.queue(gemm, stream, &mut workspace)
    }

    fn tensors(&mut self) -> Multiply<'_, T, D> {
        let activation = self.case.activation;
        let saved = self.saved.as_mut().map(Placed::view_mut);
        let preactivation = self.preactivation.as_ref().map(|drawn| drawn.placed.view());
        let epilogue = match (self.case.epilogue, preactivation, &self.weights) {
            (Epilogue::ActivateBackward, Some(preactivation), _) => {
                gemm::Epilogue::ActivateBackward {
                    activation,
                    preactivation,
                }
            }
            (Epilogue::GateBackward, Some(preactivation), _) => gemm::Epilogue::GateBackward {
                activation,
                preactivation,
            },
            (_, _, Some(weights)) => gemm::Epilogue::Gate {
                activation,
                weights: weights.placed.view(),
                bias: self.gate_bias.as_ref().map(|bias| bias.placed.view()),
                preactivation: saved,
            },
            _ => gemm::Epilogue::Activate {
                activation,
                preactivation: saved,
            },
        };
        let adapter = self.down.as_ref().zip(self.up.as_ref());
        let offsets = self.offsets.as_ref().map(Placed::view);
        Multiply {
            a: self.a.placed.view(),
            b: self.b.placed.view(),
            adapter: adapter.map(|(down, up)| gemm::Adapter {
                down: down.placed.view(),
                up: up.placed.view(),
                scale: ADAPTER_SCALE,
            }),
            row_scale: self.row_scale.as_ref().map(|scale| scale.placed.view()),
            column_scale: self.column_scale.as_ref().map(|scale| scale.placed.view()),
            c: match (self.case.extra.c, &self.c) {
                (Addend::Tensor, Some(c)) => gemm::Addend::Tensor(c.placed.view()),
                (Addend::InPlace, _) => gemm::Addend::InPlace,
                _ => gemm::Addend::None,
            },
            bias: self.bias.as_ref().map(|bias| bias.placed.view()),
            epilogue,
            residual: self
                .residual
                .as_ref()
                .map(|residual| residual.placed.view()),
            column_sums: self.column_sums.as_mut().map(Placed::view_mut),
            non_finite: self.non_finite.as_mut().map(Placed::view_mut),
            groups: match (self.case.groups, offsets) {
                (Groups::Rows(_), Some(offsets)) => gemm::Groups::Rows(offsets),
                (Groups::K(_), Some(offsets)) => gemm::Groups::K(offsets),
                _ => gemm::Groups::None,
            },
            d: self.d.view_mut(),
        }
    }

    /// d alone: all other tensors are dropped.
    pub(super) fn into_d(self) -> Placed<D, 3> {
        self.d
    }

    /// What was written, after a check that nothing beside it was.
    pub(super) fn fetch(&self, stream: &Arc<CudaStream>) -> Found {
        let widen = |x: Vec<T>| x.into_iter().map(Into::into).collect::<Vec<f64>>();
        let saved = self.saved.as_ref();
        let sums = self.column_sums.as_ref();
        let counter = self.non_finite.as_ref();
        Found {
            d: self
                .d
                .fetch(stream, "d")
                .into_iter()
                .map(Into::into)
                .collect(),
            preactivation: saved.map(|saved| widen(saved.fetch(stream, "preactivation"))),
            column_sums: sums.map(|sums| {
                let sums = sums.fetch(stream, "column_sums");
                sums.into_iter().map(Into::into).collect()
            }),
            non_finite: counter.map(|counter| counter.fetch(stream, "non_finite")[0]),
        }
    }
}

/// What a problem wrote.
pub(super) struct Found {
    pub(super) d: Vec<f64>,
    pub(super) preactivation: Option<Vec<f64>>,
    pub(super) column_sums: Option<Vec<f64>>,
    pub(super) non_finite: Option<i32>,
}

impl Found {
    /// All of it as bits, so that NaN equals NaN and 0 differs from -0.
    pub(super) fn bits(&self) -> Vec<u64> {
        let numbers = [
            Some(&self.d),
            self.preactivation.as_ref(),
            self.column_sums.as_ref(),
        ];
        let numbers = numbers.into_iter().flatten().flatten();
        let count = self.non_finite.map(|count| count as u64);
        numbers.map(|x| x.to_bits()).chain(count).collect()
    }
}

/// One matrix for the whole batch.
fn repeated(mut place: Place<3>) -> Place<3> {
    place.total -= place.shape[0].saturating_sub(1) * place.strides[0];
    place.strides[0] = 0;
    place
}

/// How many matrices there are of the operands and of d, and how many vectors there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batches {
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) vectors: usize,
    pub(super) results: usize,
}

impl Case {
    pub(super) fn batches(&self) -> Batches {
        let (a, b, vectors, results) = match self.groups {
            Groups::None => (self.batch, self.batch, self.batch, self.batch),
            Groups::Rows(offsets) => {
                let groups = offsets.len() - 1;
                (1, groups, groups, 1)
            }
            Groups::K(offsets) => {
                let groups = offsets.len() - 1;
                (1, 1, groups, groups)
            }
        };
        Batches {
            a,
            b,
            vectors,
            results,
        }
    }

    /// The case as one tensor has it: with padding and shift, or without.
    fn only(self, tensor: u32) -> Self {
        if self.uneven >> tensor & 1 == 1 {
            return self;
        }
        Self {
            padding: 0,
            shift: 0,
            ..self
        }
    }

    /// Whether the epilogue reads what another has saved.
    pub(super) fn is_backward(&self) -> bool {
        matches!(
            self.epilogue,
            Epilogue::ActivateBackward | Epilogue::GateBackward
        )
    }

    /// Where matrices lie.
    pub(super) fn place(&self, shape: [usize; 3], stored: Stored) -> Place<3> {
        let [batch, rows, columns] = shape;
        let (line, lines) = match stored {
            Stored::Rows => (columns + self.padding, rows),
            Stored::Columns => (rows + self.padding, columns),
        };
        let dense = Place::contiguous([batch, lines * line]);
        let [row, column] = match stored {
            Stored::Rows => [line, 1],
            Stored::Columns => [1, line],
        };
        Place {
            shape,
            strides: [lines * line, row, column],
            offset: dense.offset + self.shift,
            total: dense.total + self.shift,
        }
    }

    /// Where vectors lie.
    pub(super) fn place_vectors(&self, [count, size]: [usize; 2]) -> Place<2> {
        let line = size + self.padding;
        let dense = Place::contiguous([count, line]);
        Place {
            shape: [count, size],
            offset: dense.offset + self.shift,
            total: dense.total + self.shift,
            ..dense
        }
    }
}
