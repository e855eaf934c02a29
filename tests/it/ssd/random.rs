//! Layers that no one chose, in both directions, and cut in two: against the reference.

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Case, Config, Inputs, Layout, SCALE, Scale, SkipKind, check, compare, gradients, run};
use crate::naive::Number;

const LAYERS: usize = 30;

/// Numbers below a limit, the same ones in every run.
struct Dice(StdRng);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit)
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.below(sides) == 0
    }

    fn of<X: Copy>(&mut self, choices: &[X]) -> X {
        choices[self.below(choices.len())]
    }

    /// Lengths of packed sequences, some of them 0.
    fn lengths(&mut self) -> &'static [usize] {
        let lengths = (0..1 + self.below(5)).map(|_| match self.one_in(4) {
            true => 0,
            false => 1 + self.below(140),
        });
        // lives as long as the tests
        lengths.collect::<Vec<_>>().leak()
    }

    fn layer(&mut self) -> Case {
        let groups = 1 + self.below(3);
        Case {
            batch: 1 + self.below(2),
            seqlen: 1 + self.below(200),
            heads: groups * (1 + self.below(3)),
            headdim: 8 * (1 + self.below(10)),
            groups,
            dstate: 8 * (1 + self.below(18)),
            config: Config {
                dt_softplus: !self.one_in(4),
                dt_limit: self.of(&[(0.0, f32::INFINITY), (0.0, f32::INFINITY), (0.02, 0.5)]),
                segment: self.of(&[None, Some(1), Some(64), Some(100)]),
            },
            skip: self.of(&[SkipKind::None, SkipKind::PerHead, SkipKind::PerChannel]),
            z: self.one_in(2),
            dt_bias: !self.one_in(3),
            initial_states: self.one_in(2),
            final_states: self.one_in(2),
            lengths: match self.one_in(3) {
                true => Some(self.lengths()),
                false => None,
            },
            layout: self.of(&[Layout::Contiguous, Layout::Projection, Layout::StepsFirst]),
            scale: Scale {
                a: self.of(&[-0.01, -0.25, -4.0]),
                dt_bias: self.of(&[-4.0, -2.0, 0.0]),
                ..SCALE
            },
        }
    }
}

/// A sequence computed in two calls, of which the second begins with the final states of the first.
fn check_continued<T: Number>(whole: Case, first: usize) {
    let Case { batch, seqlen, .. } = whole;
    let name = format!("{:?} {first} and then to {whole:?}", T::DTYPE);
    let inputs = whole.inputs::<T>();
    let (mut out, mut states) = (Vec::new(), Vec::<f32>::new());
    assert_eq!(batch, 1, "the parts' outputs follow each other");
    for steps in [0..first, first..seqlen] {
        let part = Case {
            seqlen: steps.len(),
            initial_states: whole.initial_states || steps.start > 0,
            ..whole
        };
        let of_part = |tensor: &[T]| {
            let row = tensor.len() / seqlen;
            tensor[steps.start * row..steps.end * row].to_vec()
        };
        let inputs = Inputs {
            x: of_part(&inputs.x),
            dt: of_part(&inputs.dt),
            b: of_part(&inputs.b),
            c: of_part(&inputs.c),
            z: of_part(&inputs.z),
            initial_states: match steps.start {
                0 => inputs.initial_states.clone(),
                _ => states,
            },
            ..inputs.clone()
        };
        let result = run(&name, part, &inputs);
        out.extend(result.0);
        states = result.1.into_iter().map(|x| x as f32).collect(); // exact
    }
    let states: Vec<f64> = states.into_iter().map(f64::from).collect();
    compare(&name, whole, &inputs, &out, &states);
}

#[test]
fn layers_forward() {
    let mut dice = Dice(StdRng::seed_from_u64(71));
    for _ in 0..LAYERS {
        let case = dice.layer();
        check::<f16>(case);
        check::<bf16>(case);
        check::<f32>(case);
    }
}

#[test]
fn layers_backward() {
    let mut dice = Dice(StdRng::seed_from_u64(72));
    for _ in 0..LAYERS / 2 {
        let case = dice.layer();
        gradients::check::<f16>(case);
        gradients::check::<bf16>(case);
        gradients::check::<f32>(case);
    }
}

#[test]
fn layers_that_are_cut_in_two() {
    let mut dice = Dice(StdRng::seed_from_u64(73));
    for _ in 0..LAYERS / 3 {
        let seqlen = 2 + dice.below(200);
        let case = Case {
            batch: 1,
            seqlen,
            lengths: None,
            final_states: true,
            ..dice.layer()
        };
        let first = 1 + dice.below(seqlen - 1);
        check_continued::<f16>(case, first);
        check_continued::<bf16>(case, first);
        check_continued::<f32>(case, first);
    }
}
