//! The unit with its projections, forward and backward, against the formulas in `f64`.

use half::{bf16, f16};
use seqmix::Workspace;
use seqmix::gated_attention_unit::{
    AffineMut, Block, BlockBackward, BlockForward, Mixed, Pair, PairMut, Weights,
};
use seqmix::reference::gated_attention_unit as reference;

use super::gradients::bound;
use super::{CASE, Case, Inputs, round_in_any_range};
use crate::measure::Verdict;
use crate::naive::{Number, normal};
use crate::support::{Place, Placed, device};

/// Channels of the model.
const D: usize = 48;

/// The numbers of a block.
struct Numbers<T> {
    case: Case,
    unit: Inputs<T>,
    x: Vec<T>,
    project: Vec<T>,
    project_bias: Vec<T>,
    out: Vec<T>,
    out_bias: Vec<T>,
    dy: Vec<T>,
}

/// What a block returns: tensors by name.
type Results = Vec<(&'static str, Vec<f64>)>;

impl<T: Number> Numbers<T> {
    fn new(case: Case) -> Self {
        let [batch, steps] = case.steps();
        let (rows, n) = (batch * steps, 2 * case.dv + case.dz);
        let deviation = 1.0 / (D as f64).sqrt();
        Self {
            case,
            unit: case.inputs(),
            x: normal(31, rows * D, 1.0),
            project: normal(32, n * D, 1.5 * deviation),
            project_bias: normal(33, n, 0.3),
            out: normal(34, D * case.dv, 1.0 / (case.dv as f64).sqrt()),
            out_bias: normal(35, D, 0.3),
            dy: normal(36, rows * D, 1.0),
        }
    }

    /// All results by the formulas; what one call hands on to the next is rounded.
    fn expected(&self, round: impl Fn(f64) -> f64 + Copy) -> Results {
        let Case { dz, dv, .. } = self.case;
        let (n, rows) = (2 * dv + dz, self.x.len() / D);
        let [x, project, project_bias, out, out_bias, dy] = [
            &self.x,
            &self.project,
            &self.project_bias,
            &self.out,
            &self.out_bias,
            &self.dy,
        ]
        .map(|numbers| widen(numbers));
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let derivative = |x: f64| {
            let s = 1.0 / (1.0 + (-x).exp());
            s + x * s * (1.0 - s)
        };
        // pre = x project^T + bias, unrounded into silu, rounded as saved
        let exact = product(&x, &transposed(&project, n, D), rows, D, n);
        let pre = |i: usize| exact[i] + project_bias[i % n];
        let activated: Vec<f64> = (0..rows * n).map(|i| round(silu(pre(i)))).collect();
        let part = |from: &[f64], start: usize, size: usize| -> Vec<f64> {
            let rows = from.chunks(n);
            rows.flat_map(|row| row[start..start + size].to_vec())
                .collect()
        };
        let (u, v, z) = (
            part(&activated, 0, dv),
            part(&activated, dv, dv),
            part(&activated, 2 * dv, dz),
        );
        let dgated = product(&dy, &out, rows, D, dv);
        let dgated: Vec<f64> = dgated.into_iter().map(round).collect();
        let (gated, unit) = self.case.reference(&self.unit, |unit| {
            let forward = reference::Forward {
                u: &u,
                v: &v,
                z: &z,
                ..*unit
            };
            let backward = reference::Backward {
                forward,
                dout: &dgated,
            };
            (
                forward.run_rounded(round).unwrap(),
                backward.run_rounded(round).unwrap(),
            )
        });
        let y = product(&gated, &transposed(&out, D, dv), rows, dv, D);
        let y = (0..y.len())
            .map(|i| round(y[i] + out_bias[i % D]))
            .collect();
        let mut dpre = vec![0.0; rows * n];
        for (gradient, start, size) in [
            (&unit.du, 0, dv),
            (&unit.dv, dv, dv),
            (&unit.dz, 2 * dv, dz),
        ] {
            for (i, x) in gradient.iter().enumerate() {
                let at = i / size * n + start + i % size;
                dpre[at] = round(x * derivative(round(pre(at))));
            }
        }
        let dx = product(&dpre, &project, rows, n, D);
        vec![
            ("y", y),
            ("dx", dx.into_iter().map(round).collect()),
            (
                "dproject",
                product(&transposed(&dpre, rows, n), &x, n, rows, D),
            ),
            ("dproject_bias", sums(&dpre, n)),
            (
                "dout",
                product(&transposed(&dy, rows, D), &gated, D, rows, dv),
            ),
            ("dout_bias", sums(&dy, D)),
            ("dgamma", unit.quadratic.q.dgamma),
            ("dbias", unit.dbias.unwrap_or_default()),
        ]
    }

    /// All results by the kernels.
    fn run(&self) -> Results {
        let device = device();
        let stream = device.stream();
        let block = Block::new(&device.context).unwrap();
        let case = self.case;
        let Case { dz, dv, .. } = case;
        let ([batch, steps], n) = (case.steps(), 2 * dv + dz);
        let nan = T::narrow(f64::NAN);
        let rows = |numbers: &[T], channels| {
            let place = Place::contiguous([batch, steps, channels]);
            Placed::input(&stream, place, numbers, nan)
        };
        let unset = |channels| {
            let place = Place::contiguous([batch, steps, channels]);
            Placed::output(&stream, place, nan, T::narrow(-123.0))
        };
        let matrix =
            |numbers: &[T], shape| Placed::input(&stream, Place::contiguous(shape), numbers, nan);
        let vector = |numbers: &[T]| {
            Placed::input(&stream, Place::contiguous([numbers.len()]), numbers, nan)
        };
        let singles = |numbers: &[f32]| {
            Placed::input(
                &stream,
                Place::contiguous([numbers.len()]),
                numbers,
                f32::NAN,
            )
        };
        let unset_singles =
            |count| Placed::output(&stream, Place::contiguous([count]), f32::NAN, -123.0);
        let unset_matrix =
            |shape| Placed::output(&stream, Place::contiguous(shape), f32::NAN, -123.0);
        let (x, dy) = (rows(&self.x, D), rows(&self.dy, D));
        let (project, out) = (matrix(&self.project, [n, D]), matrix(&self.out, [D, dv]));
        let (project_bias, out_bias) = (vector(&self.project_bias), vector(&self.out_bias));
        let vectors = self.unit.vectors.each_ref().map(|numbers| singles(numbers));
        let bias = singles(&self.unit.bias);
        let offsets = case.cu_seqlens().map(|starts| {
            let starts: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
            Placed::input(
                &stream,
                Place::contiguous([starts.len()]),
                &starts,
                i32::MAX,
            )
        });
        let affine = |at: usize| seqmix::gated_attention_unit::Affine {
            gamma: vectors[at].view(),
            beta: vectors[at + 1].view(),
        };
        let pair = |at: usize| Pair {
            q: affine(at),
            k: affine(at + 2),
        };
        let weights = || Weights {
            project_bias: Some(project_bias.view()),
            out_bias: Some(out_bias.view()),
            bias: case.bias.then(|| bias.view()),
            mixed: case.chunk.map(|chunk| Mixed {
                chunk,
                linear: pair(4),
                scale: case.scale,
            }),
            ..Weights::new(project.view(), out.view(), pair(0))
        };
        let cu_seqlens = || offsets.as_ref().map(Placed::view);
        let (mut preactivation, mut activated, mut gated, mut y) =
            (unset(n), unset(n), unset(dv), unset(D));
        let forward = BlockForward {
            x: x.view(),
            weights: weights(),
            cu_seqlens: cu_seqlens(),
            preactivation: Some(preactivation.view_mut()),
            activated: activated.view_mut(),
            gated: gated.view_mut(),
            y: y.view_mut(),
        };
        let config = case.config();
        let mut workspace = Workspace::new(&stream);
        workspace
            .reserve(block.workspace_bytes(config, &forward).unwrap())
            .unwrap();
        block
            .forward(&stream, config, forward, &mut workspace)
            .unwrap();

        let mut dx = unset(D);
        let (mut dproject, mut dout) = (unset_matrix([n, D]), unset_matrix([D, dv]));
        let (mut dproject_bias, mut dout_bias) = (unset_singles(n), unset_singles(D));
        let mut dvectors: [Placed<f32, 1>; 8] = std::array::from_fn(|_| unset_singles(dz));
        let mut dbias = unset_singles(case.biases());
        let mut views = dvectors.each_mut().map(|x| x.view_mut()).into_iter();
        let mut affine = || {
            let mut next = || views.next().expect("eight vectors");
            AffineMut {
                dgamma: next(),
                dbeta: next(),
            }
        };
        let mut pair = || PairMut {
            q: affine(),
            k: affine(),
        };
        let backward = BlockBackward {
            x: x.view(),
            weights: weights(),
            cu_seqlens: cu_seqlens(),
            preactivation: preactivation.view(),
            activated: activated.view(),
            gated: gated.view(),
            dy: dy.view(),
            dx: dx.view_mut(),
            dproject: dproject.view_mut(),
            dproject_bias: Some(dproject_bias.view_mut()),
            dout: dout.view_mut(),
            dout_bias: Some(dout_bias.view_mut()),
            quadratic: pair(),
            linear: case.chunk.map(|_| pair()),
            dbias: case.bias.then(|| dbias.view_mut()),
        };
        drop(views);
        let mut workspace = Workspace::new(&stream);
        workspace
            .reserve(block.backward_workspace_bytes(config, &backward).unwrap())
            .unwrap();
        block
            .backward(&stream, config, backward, &mut workspace)
            .unwrap();
        vec![
            ("y", widen(&y.fetch(&stream, "y"))),
            ("dx", widen(&dx.fetch(&stream, "dx"))),
            ("dproject", widen(&dproject.fetch(&stream, "dproject"))),
            (
                "dproject_bias",
                widen(&dproject_bias.fetch(&stream, "dproject_bias")),
            ),
            ("dout", widen(&dout.fetch(&stream, "dout"))),
            ("dout_bias", widen(&dout_bias.fetch(&stream, "dout_bias"))),
            ("dgamma", widen(&dvectors[0].fetch(&stream, "dgamma"))),
            ("dbias", widen(&dbias.fetch(&stream, "dbias"))),
        ]
    }

    fn check(&self) {
        let name = format!("{:?} {:?}", T::DTYPE, self.case);
        let exact = self.expected(|x| x);
        let naive = self.expected(round_in_any_range::<T>);
        for ((which, found), (expected, naive)) in self.run().iter().zip(exact.iter().zip(&naive)) {
            if expected.1.is_empty() {
                continue;
            }
            let within = bound::<T>(&expected.1, &[&naive.1]);
            let verdict = Verdict::of(found, &expected.1, expected.1.len(), within);
            assert!(verdict.pass(), "{name}: {which}: {verdict}");
        }
    }
}

fn widen<T: Copy + Into<f64>>(numbers: &[T]) -> Vec<f64> {
    numbers.iter().map(|&x| x.into()).collect()
}

/// `a b`, where `a` is `[m, k]` and `b` `[k, n]`.
fn product(a: &[f64], b: &[f64], m: usize, k: usize, n: usize) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for (j, a) in a[i * k..(i + 1) * k].iter().enumerate() {
            for (c, b) in c[i * n..(i + 1) * n].iter_mut().zip(&b[j * n..]) {
                *c += a * b;
            }
        }
    }
    c
}

fn transposed(a: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    let element = |i: usize| a[i % rows * columns + i / rows];
    (0..rows * columns).map(element).collect()
}

fn sums(a: &[f64], columns: usize) -> Vec<f64> {
    let mut sums = vec![0.0; columns];
    for row in a.chunks(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    sums
}

#[test]
fn a_block_is_its_parts() {
    for chunk in [None, Some(64)] {
        let case = Case {
            batch: 2,
            seqlen: 90,
            dv: 56,
            chunk,
            scale: 0.05,
            ..CASE
        };
        Numbers::<f16>::new(case).check();
        Numbers::<bf16>::new(case).check();
    }
    let packed = Case {
        lengths: Some(&[0, 5, 70]),
        dv: 56,
        scale: 0.05,
        ..CASE
    };
    Numbers::<f16>::new(packed).check();
    let single = Case {
        seqlen: 20,
        dv: 40,
        scale: 0.05,
        ..CASE
    };
    Numbers::<f32>::new(single).check();
}
