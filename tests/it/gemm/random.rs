//! Problems that no one chose.

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use seqmix::gemm::{Config, Overflow};

use super::{
    ACTIVATIONS, Addend, Case, Columns, EPILOGUES, Epilogue, Extra, Groups, LAYOUTS, Low, PLAIN,
    Rows, check_into,
};

const PROBLEMS: usize = 360;

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

    /// Mostly small, sometimes several tiles, often where a tile or a copy ends.
    fn size(&mut self) -> usize {
        match self.below(6) {
            0 => 1 + self.below(8),
            1 => self.of(&[16, 32, 63, 64, 65, 128, 129]),
            2 => 8 * (1 + self.below(20)),
            _ => 1 + self.below(100),
        }
    }

    /// Offsets of groups that leave out nothing, or something at either end.
    fn offsets(&mut self, total: usize) -> &'static [i32] {
        let mut cuts: Vec<usize> = (0..=1 + self.below(6))
            .map(|_| self.below(total + 1))
            .collect();
        cuts.sort_unstable();
        if self.one_in(2) {
            cuts[0] = 0;
            *cuts.last_mut().unwrap() = total;
        }
        // lives as long as the tests
        cuts.into_iter()
            .map(|cut| cut as i32)
            .collect::<Vec<_>>()
            .leak()
    }

    fn problem(&mut self) -> Case {
        let (a, b) = self.of(&LAYOUTS);
        let mut case = Case {
            batch: 1 + self.below(3),
            a,
            b,
            padding: self.of(&[0, 0, 1, 4, 8]),
            shift: self.of(&[0, 0, 0, 1, 4, 8]),
            uneven: if self.one_in(2) {
                u32::MAX
            } else {
                self.0.random()
            },
            shared_a: self.one_in(4),
            shared_b: self.one_in(3),
            config: Config {
                alpha: self.of(&[1.0, 0.75, -2.0]),
                beta: self.of(&[1.0, 2.0, 0.0]),
                overflow: self.of(&[Overflow::Infinity, Overflow::Saturate]),
                ..PLAIN
            },
            extra: Extra {
                adapter: None,
                row_scale: self.one_in(3),
                column_scale: self.one_in(3),
                c: self.of(&[Addend::None, Addend::None, Addend::Tensor, Addend::InPlace]),
                bias: self.one_in(2),
                gate_bias: self.one_in(2),
                residual: self.one_in(3),
                preactivation: self.one_in(2),
                column_sums: self.one_in(4),
                non_finite: self.one_in(4),
                one_vector: self.one_in(2),
            },
            ..Case::of(self.size(), self.size(), self.size())
        };
        if self.one_in(8) {
            case.k = self.below(600);
        }
        let mut epilogue = self.of(&EPILOGUES);
        match self.below(4) {
            0 => {
                epilogue = self.of(&[Epilogue::Activate, Epilogue::ActivateBackward]);
                case.extra.adapter = Some(Low {
                    rank: self.of(&[1, 3, 8, 16, 40, 64]),
                    down: self.of(&[Rows, Columns]),
                    up: self.of(&[Rows, Columns]),
                });
            }
            1 => {
                case.batch = 1;
                case.extra.column_sums = false;
                case.groups = if self.one_in(2) {
                    Groups::Rows(self.offsets(case.m))
                } else {
                    Groups::K(self.offsets(case.k))
                };
            }
            2 if epilogue != Epilogue::Gate => {
                case.extra.column_sums = false;
                case.config.splits = Some(1 + self.below(7));
            }
            _ => {}
        }
        case.with(epilogue, self.of(&ACTIVATIONS))
    }
}

#[test]
fn random_problems() {
    let mut dice = Dice(StdRng::seed_from_u64(7));
    for _ in 0..PROBLEMS {
        let case = dice.problem();
        match dice.below(8) {
            0 | 1 => check_into::<f16, f16>(case),
            2 => check_into::<bf16, bf16>(case),
            3 => check_into::<f16, f32>(case),
            4 => check_into::<bf16, f32>(case),
            5 => check_into::<bf16, f16>(case),
            // an adapter is for tensor cores
            _ if case.extra.adapter.is_some() => check_into::<f16, bf16>(case),
            6 => check_into::<f32, f32>(case),
            _ => check_into::<f32, bf16>(case),
        }
    }
}
