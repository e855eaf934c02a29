//! Steps on the device, and what they must give.

use std::sync::Arc;

use seqmix::Result;
use seqmix::cudarc::driver::CudaStream;
use seqmix::linear_attention::{Config, Decay, FeatureMap, LinearAttention, Rule, Step};
use seqmix::reference::linear_attention as reference;

use super::{Case, DecayKind};
use crate::measure::Bound;
use crate::naive::{Number, bound, normal};
use crate::support::{Place, Placed, assert_close, device};

/// What sums and exponentials in f32 lose, as a share of the largest number.
const ARITHMETIC: f64 = 1e-5;

/// Numbers that stay where nothing is to be written, and of outputs before the call.
const GUARD: f64 = -123.0;
const UNSET: f64 = 7.0;

/// What tensors hold, row-major.
pub(super) struct Host<T> {
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    beta: Vec<T>,
    pub(super) decay: Vec<f32>,
    bonus: Vec<f32>,
    state: Vec<f32>,
    z: Vec<f32>,
}

pub(super) fn widen<T: Number>(x: &[T]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

impl<T: Number> Host<T> {
    pub(super) fn new(case: Case) -> Self {
        let Case {
            batch,
            steps,
            heads,
            dk,
            dv,
            ..
        } = case;
        let rows = batch * steps;
        let [heads_q, heads_k, heads_v] = case.shared;
        let of_heads = rows * heads;
        let decays = match case.decay {
            DecayKind::None => 0,
            DecayKind::PerHead => heads,
            DecayKind::PerStep => of_heads,
            DecayKind::PerChannel => of_heads * dk,
        };
        // of all sizes, among them one that keeps everything and one that forgets it
        let decay = normal::<f32>(5, decays, 1.0).into_iter().enumerate();
        let decay = decay.map(|(at, x)| match at % 23 {
            5 => 0.0,
            9 => f32::NEG_INFINITY,
            _ => -x.exp(),
        });
        // keys whose length is about 1, so that the delta rule does not overshoot, and a state that they meet
        let spread = match case.feature_map {
            FeatureMap::Identity => 1.0 / (dk as f64).sqrt(),
            _ => 0.5,
        };
        let beta = normal::<T>(6, of_heads, 1.0).into_iter().map(|x| {
            let x: f64 = x.into();
            T::narrow(match case.feature_map {
                FeatureMap::Identity => 1.0 / (1.0 + x.exp()),
                _ => 1.0 / (1.0 + x.exp()) / dk as f64,
            })
        });
        // what outputs are divided by is far from 0
        let z = normal::<f32>(9, case.entries() * heads * dk, 1.0);
        let z = z.into_iter().map(|x| (0.5 + x.abs()) / dk as f32);
        Self {
            q: normal(1, rows * heads_q * dk, 1.0),
            k: normal(2, rows * heads_k * dk, spread),
            v: normal(3, rows * heads_v * dv, 1.0),
            beta: beta.collect(),
            decay: decay.collect(),
            bonus: normal::<f32>(7, heads * dk, 1.0)
                .iter()
                .map(|x| x.abs())
                .collect(),
            state: normal(8, case.entries() * heads * dk * dv, 1.0),
            z: z.collect(),
        }
    }
}

/// A problem on the device: inputs surrounded by NaN, what is written by a number that must stay.
pub(super) struct Problem<T> {
    case: Case,
    host: Host<T>,
    pub(super) q: Placed<T, 4>,
    pub(super) k: Placed<T, 4>,
    pub(super) v: Placed<T, 4>,
    beta: Placed<T, 3>,
    per_head: Placed<f32, 1>,
    pub(super) per_step: Placed<f32, 3>,
    per_channel: Placed<f32, 4>,
    bonus: Placed<f32, 2>,
    state: Placed<f32, 4>,
    z: Placed<f32, 3>,
    indices: Option<Placed<i32, 1>>,
    out: Placed<T, 4>,
}

impl<T: Number> Problem<T> {
    pub(super) fn new(case: Case, stream: &Arc<CudaStream>) -> Self {
        let host = Host::<T>::new(case);
        let Case {
            batch,
            steps,
            heads,
            dk,
            dv,
            strided,
            ..
        } = case;
        let [heads_q, heads_k, heads_v] = case.shared;
        let (nan, guard) = (T::narrow(f64::NAN), T::narrow(GUARD));
        let place = |shape| match strided {
            true => Place::packed(shape, 3, 1, 3),
            false => Place::contiguous(shape),
        };
        let input = |shape, data: &[T]| Placed::input(stream, place(shape), data, nan);
        let decays = |kind, shape: &[usize]| match case.decay == kind {
            true => host.decay.clone(),
            false => vec![f32::NAN; shape.iter().product()],
        };
        let of_heads = [batch, steps, heads];
        let of_channels = [batch, steps, heads, dk];
        let entries = case.entries();
        let (state_order, z_order) = match strided {
            true => ([1, 0, 2, 3], [2, 1, 0]),
            false => ([0, 1, 2, 3], [0, 1, 2]),
        };
        let state = Place::in_order([entries, heads, dk, dv], state_order);
        let z = Place::in_order([entries, heads, dk], z_order);
        let number = GUARD as f32;
        Self {
            case,
            q: input([batch, steps, heads_q, dk], &host.q),
            k: input([batch, steps, heads_k, dk], &host.k),
            v: input([batch, steps, heads_v, dv], &host.v),
            beta: Placed::input(stream, Place::contiguous(of_heads), &host.beta, nan),
            per_head: Placed::input(
                stream,
                Place::contiguous([heads]),
                &decays(DecayKind::PerHead, &[heads]),
                f32::NAN,
            ),
            per_step: Placed::input(
                stream,
                Place::contiguous(of_heads),
                &decays(DecayKind::PerStep, &of_heads),
                f32::NAN,
            ),
            per_channel: Placed::input(
                stream,
                place(of_channels),
                &decays(DecayKind::PerChannel, &of_channels),
                f32::NAN,
            ),
            bonus: Placed::input(
                stream,
                Place::contiguous([heads, dk]),
                &host.bonus,
                f32::NAN,
            ),
            state: Placed::input(stream, state, &host.state, number),
            z: Placed::input(stream, z, &host.z, number),
            indices: case.indices.map(|(indices, _)| {
                Placed::input(stream, Place::contiguous([batch]), indices, i32::MAX)
            }),
            out: Placed::output(
                stream,
                place([batch, steps, heads, dv]),
                T::narrow(UNSET),
                guard,
            ),
            host,
        }
    }

    /// Queues the `t`-th step.
    pub(super) fn queue(
        &mut self,
        stream: &Arc<CudaStream>,
        op: &LinearAttention,
        t: usize,
    ) -> Result<()> {
        let case = self.case;
        let step = t..t + 1;
        let tensors = Step {
            q: self.q.part(1, step.clone()),
            k: self.k.part(1, step.clone()),
            v: self.v.part(1, step.clone()),
            decay: match case.decay {
                DecayKind::None => Decay::None,
                DecayKind::PerHead => Decay::PerHead(self.per_head.view()),
                DecayKind::PerStep => Decay::PerStep(self.per_step.part(1, step.clone())),
                DecayKind::PerChannel => Decay::PerChannel(self.per_channel.part(1, step.clone())),
            },
            rule: match case.delta {
                true => Rule::Delta {
                    beta: self.beta.part(1, step.clone()),
                },
                false => Rule::Linear,
            },
            bonus: case.bonus.then(|| self.bonus.view()),
            state: self.state.view_mut(),
            z: case.normalize.map(|_| self.z.view_mut()),
            state_batch_indices: self.indices.as_ref().map(Placed::view),
            out: self.out.part_mut(1, step),
        };
        let config = Config {
            feature_map: case.feature_map,
            scale: case.scale,
            normalize: case.normalize,
            ..Config::default()
        };
        op.step(stream, config, tensors)
    }

    /// Begins with a state of zeros.
    pub(super) fn forget(&mut self, stream: &Arc<CudaStream>) {
        self.host.state.fill(0.0);
        let Case { heads, dk, dv, .. } = self.case;
        let place = Place::contiguous([self.case.entries(), heads, dk, dv]);
        self.state = Placed::input(stream, place, &self.host.state, GUARD as f32);
    }

    pub(super) fn fetch_out(&self, stream: &Arc<CudaStream>) -> Vec<f64> {
        widen(&self.out.fetch(stream, "out"))
    }

    /// What the reference returns for the rows that are no padding.
    fn expected(&self, rows: &[usize], round: Option<fn(f64) -> f64>) -> reference::Output {
        let (case, host) = (self.case, &self.host);
        let gather = |x: Vec<f64>, all: usize, of: &dyn Fn(usize) -> usize| -> Vec<f64> {
            let part = x.len() / all.max(1);
            let parts = rows.iter().map(|&row| of(row) * part);
            parts.flat_map(|at| x[at..at + part].to_vec()).collect()
        };
        let of_rows = |x: Vec<f64>| gather(x, case.batch, &|row| row);
        let of_entries = |x: &[f32]| {
            let entry = |row| case.entry(row).unwrap();
            gather(widen(x), case.entries(), &entry)
        };
        let [q, k, v, beta] = [&host.q, &host.k, &host.v, &host.beta].map(|x| of_rows(widen(x)));
        let (bonus, state, z) = (
            widen(&host.bonus),
            of_entries(&host.state),
            of_entries(&host.z),
        );
        let decay = match case.decay {
            DecayKind::None | DecayKind::PerHead => widen(&host.decay),
            _ => of_rows(widen(&host.decay)),
        };
        let [heads_q, heads_k, heads_v] = case.shared;
        let forward = reference::Forward {
            batch: rows.len(),
            seqlen: case.steps,
            heads: case.heads,
            heads_q,
            heads_k,
            heads_v,
            dk: case.dk,
            dv: case.dv,
            q: &q,
            k: &k,
            v: &v,
            feature_map: match case.feature_map {
                FeatureMap::Identity => reference::FeatureMap::Identity,
                FeatureMap::EluPlusOne => reference::FeatureMap::EluPlusOne,
                FeatureMap::Relu => reference::FeatureMap::Relu,
                FeatureMap::ReluSquared => reference::FeatureMap::ReluSquared,
                FeatureMap::Silu => reference::FeatureMap::Silu,
                FeatureMap::Exp => reference::FeatureMap::Exp,
            },
            scale: case.scale.map(f64::from),
            decay: match case.decay {
                DecayKind::None => reference::Decay::None,
                DecayKind::PerHead => reference::Decay::PerHead(&decay),
                DecayKind::PerStep => reference::Decay::PerStep(&decay),
                DecayKind::PerChannel => reference::Decay::PerChannel(&decay),
            },
            rule: match case.delta {
                true => reference::Rule::Delta { beta: &beta },
                false => reference::Rule::Linear,
            },
            readout: match case.bonus {
                true => reference::Readout::Bonus(&bonus),
                false => reference::Readout::Updated,
            },
            normalize: case.normalize.map(f64::from),
            initial_state: Some(&state),
            initial_z: case.normalize.map(|_| &z[..]),
            cu_seqlens: None,
        };
        match round {
            Some(round) => forward.run_rounded(round).unwrap(),
            None => forward.run().unwrap(),
        }
    }
}

/// Takes all steps and compares.
pub(super) fn check<T: Number>(case: Case) {
    let device = device();
    let stream = device.stream();
    let name = format!("{:?} {case:?}", T::DTYPE);
    let mut problem = Problem::<T>::new(case, &stream);
    for t in 0..case.steps {
        let queued = problem.queue(&stream, &device.linear_attention, t);
        queued.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let rows: Vec<usize> = (0..case.batch)
        .filter(|&row| case.entry(row).is_some())
        .collect();
    let expected = problem.expected(&rows, None);
    let naive = problem.expected(&rows, Some(T::round));

    let lost = bound::<T>(&expected.out, &naive.out, 1).unwrap();
    let mut out = vec![UNSET; case.batch * case.steps * case.heads * case.dv];
    spread(&mut out, case.batch, &expected.out, &rows);
    let found = problem.fetch_out(&stream);
    let lost = plus(lost, &expected.out);
    assert_close(&format!("{name}: out"), &found, &out, 1, lost);
    // nothing that enters the states is rounded to T
    let entries: Vec<usize> = rows.iter().filter_map(|&row| case.entry(row)).collect();
    let judge = |tensor: &str, found: Vec<f32>, before: &[f32], after: &[f64]| {
        let mut all = widen(before);
        spread(&mut all, case.entries(), after, &entries);
        let lost = plus(bound::<f32>(&all, &all, 1).unwrap(), &all);
        assert_close(&format!("{name}: {tensor}"), &widen(&found), &all, 1, lost);
    };
    let state = problem.state.fetch(&stream, "state");
    judge("state", state, &problem.host.state, &expected.final_state);
    let z = problem.z.fetch(&stream, "z");
    judge(
        "z",
        z,
        &problem.host.z,
        &expected.final_z.unwrap_or_default(),
    );
}

/// Puts equal parts of `numbers` to these places among `count`.
fn spread(all: &mut [f64], count: usize, numbers: &[f64], places: &[usize]) {
    let part = all.len() / count.max(1);
    for (from, &place) in numbers.chunks(part.max(1)).zip(places) {
        all[place * part..][..part].copy_from_slice(from);
    }
}

/// A bound of the largest difference, with what arithmetic in f32 loses.
pub(super) fn plus(bound: Bound, expected: &[f64]) -> Bound {
    let largest = expected
        .iter()
        .fold(0.0_f64, |largest, x| largest.max(x.abs()));
    Bound {
        max_abs: bound.max_abs + ARITHMETIC * largest,
        rel_l2: bound.rel_l2.map(|x| x + ARITHMETIC),
        row_rel_l2: None,
    }
}
