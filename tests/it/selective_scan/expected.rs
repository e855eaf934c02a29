//! What the reference returns for the numbers of a problem.

use seqmix::num_complex::Complex64;
use seqmix::reference::selective_scan as reference;
use seqmix::selective_scan::Direction;

use super::Case;

/// The inputs of a problem as numbers; complex ones are two floats, along the axis of states.
#[derive(Clone, Debug, Default)]
pub(super) struct Inputs {
    pub(super) u: Vec<f64>,
    pub(super) delta: Vec<f64>,
    pub(super) a: Vec<f64>,
    pub(super) b: Vec<f64>,
    pub(super) c: Vec<f64>,
    pub(super) d: Option<Vec<f64>>,
    pub(super) z: Option<Vec<f64>>,
    pub(super) delta_bias: Option<Vec<f64>>,
    pub(super) initial_state: Option<Vec<f64>>,
    pub(super) dout: Vec<f64>,
    pub(super) dlast_state: Option<Vec<f64>>,
}

/// A result, and the same of a naive run in the type of u.
#[derive(Clone, Debug, Default)]
pub(super) struct Pair {
    pub(super) exact: Vec<f64>,
    pub(super) naive: Vec<f64>,
}

/// What a scan returns.
pub(super) struct Output {
    pub(super) out: Pair,
    pub(super) ungated: Pair,
    pub(super) last_state: Pair,
}

/// Its gradients.
pub(super) struct Gradients {
    pub(super) du: Pair,
    pub(super) ddelta: Pair,
    pub(super) da: Pair,
    pub(super) db: Pair,
    pub(super) dc: Pair,
    pub(super) dd: Pair,
    pub(super) dz: Option<Pair>,
    pub(super) ddelta_bias: Pair,
    pub(super) dinitial_state: Pair,
}

/// Numbers that states consist of, out of floats of which `inner` follow each other for one float of a state.
trait Packed: reference::Number {
    fn pack(floats: &[f64], inner: usize) -> Vec<Self>;
    fn unpack(numbers: &[Self], inner: usize) -> Vec<f64>;
}

impl Packed for f64 {
    fn pack(floats: &[f64], _: usize) -> Vec<Self> {
        floats.into()
    }
    fn unpack(numbers: &[Self], _: usize) -> Vec<f64> {
        numbers.into()
    }
}

impl Packed for Complex64 {
    fn pack(floats: &[f64], inner: usize) -> Vec<Self> {
        let pairs = floats.chunks(2 * inner.max(1));
        let numbers = pairs.flat_map(|pair| {
            let (re, im) = pair.split_at(inner);
            re.iter().zip(im).map(|(&re, &im)| Self::new(re, im))
        });
        numbers.collect()
    }
    fn unpack(numbers: &[Self], inner: usize) -> Vec<f64> {
        let rows = numbers.chunks(inner.max(1));
        let floats = rows.flat_map(|row| {
            let re = row.iter().map(|x| x.re);
            re.chain(row.iter().map(|x| x.im)).collect::<Vec<_>>()
        });
        floats.collect()
    }
}

/// Calls `with` with the reference's form of a problem.
fn with<S: Packed, R>(
    case: &Case,
    inputs: &Inputs,
    run: impl Fn(reference::Forward<'_, S>, Option<&[S]>) -> R,
) -> R {
    let pack = |floats: &Vec<f64>| S::pack(floats, 1);
    let coefficient = |floats: &Vec<f64>, variable: bool| match variable {
        true => S::pack(floats, case.seqlen),
        false => S::pack(floats, 1),
    };
    let (a, initial_state) = (pack(&inputs.a), inputs.initial_state.as_ref().map(pack));
    let b = coefficient(&inputs.b, case.b.is_some());
    let c = coefficient(&inputs.c, case.c.is_some());
    let cu_seqlens: Option<Vec<usize>> = case
        .cu_seqlens
        .map(|cu| cu.iter().map(|&x| x as usize).collect());
    let of = |numbers, variable| match variable {
        true => reference::Coefficient::Variable(numbers),
        false => reference::Coefficient::Constant(numbers),
    };
    let forward = reference::Forward {
        batch: case.batch,
        dim: case.dim,
        seqlen: case.seqlen,
        dstate: case.dstate,
        groups: case.groups,
        u: &inputs.u,
        delta: &inputs.delta,
        a: &a,
        b: of(&b, case.b.is_some()),
        c: of(&c, case.c.is_some()),
        d: inputs.d.as_deref(),
        z: inputs.z.as_deref(),
        delta_bias: inputs.delta_bias.as_deref(),
        delta_softplus: case.config.delta_softplus,
        initial_state: initial_state.as_deref(),
        cu_seqlens: cu_seqlens.as_deref(),
        direction: match case.config.direction {
            Direction::Forward => reference::Direction::Forward,
            Direction::Reverse => reference::Direction::Reverse,
        },
    };
    run(forward, inputs.dlast_state.as_ref().map(pack).as_deref())
}

/// The scan of these inputs; `round` is to the type of u and back.
pub(super) fn forward(case: &Case, inputs: &Inputs, round: fn(f64) -> f64) -> Output {
    match case.is_complex() {
        true => forward_of::<Complex64>(case, inputs, round),
        false => forward_of::<f64>(case, inputs, round),
    }
}

fn forward_of<S: Packed>(case: &Case, inputs: &Inputs, round: fn(f64) -> f64) -> Output {
    with::<S, _>(case, inputs, |forward, _| {
        let (exact, naive) = (forward.run().unwrap(), forward.run_rounded(round).unwrap());
        let ungated = reference::Forward { z: None, ..forward };
        let pair = |exact, naive| Pair { exact, naive };
        Output {
            ungated: pair(
                ungated.run().unwrap().out,
                ungated.run_rounded(round).unwrap().out,
            ),
            last_state: pair(
                S::unpack(&exact.last_state, 1),
                S::unpack(&naive.last_state, 1),
            ),
            out: pair(exact.out, naive.out),
        }
    })
}

/// The gradients of these inputs.
pub(super) fn backward(case: &Case, inputs: &Inputs, round: fn(f64) -> f64) -> Gradients {
    match case.is_complex() {
        true => backward_of::<Complex64>(case, inputs, round),
        false => backward_of::<f64>(case, inputs, round),
    }
}

fn backward_of<S: Packed>(case: &Case, inputs: &Inputs, round: fn(f64) -> f64) -> Gradients {
    with::<S, _>(case, inputs, |forward, dlast_state| {
        let backward = reference::Backward {
            forward,
            dout: &inputs.dout,
            dlast_state,
        };
        let exact = backward.run().unwrap();
        let naive = backward.run_rounded(round).unwrap();
        let pair = |exact, naive| Pair { exact, naive };
        let packed = |exact: &[S], naive: &[S], inner: usize| {
            pair(S::unpack(exact, inner), S::unpack(naive, inner))
        };
        let inner = |variable: bool| if variable { case.seqlen } else { 1 };
        Gradients {
            da: packed(&exact.da, &naive.da, 1),
            db: packed(&exact.db, &naive.db, inner(case.b.is_some())),
            dc: packed(&exact.dc, &naive.dc, inner(case.c.is_some())),
            dinitial_state: packed(&exact.dinitial_state, &naive.dinitial_state, 1),
            du: pair(exact.du, naive.du),
            ddelta: pair(exact.ddelta, naive.ddelta),
            dd: pair(exact.dd, naive.dd),
            dz: exact
                .dz
                .zip(naive.dz)
                .map(|(exact, naive)| pair(exact, naive)),
            ddelta_bias: pair(exact.ddelta_bias, naive.ddelta_bias),
        }
    })
}
