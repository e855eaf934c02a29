//! mma.sync against a product computed here, for every shape and type.
//!
//! The fragment layouts are written down from the manual (PTX ISA, matrix fragments for mma.m16n8k8 and mma.m16n8k16),
//! not from the emulator. Each lane reads its registers from slots as in [`super::case`] and writes its results back.

use half::{bf16, f16};

use super::emulator::{Bench, Call, ways};
use cuda_emulator::{Device, Options, Schedule};

const ROWS: usize = 16;
const COLUMNS: usize = 8;
const LANES: usize = 32;

/// A form of the instruction.
#[derive(Debug, Clone, Copy)]
struct Form {
    k: usize,
    /// `f16` or `bf16`.
    kind: &'static str,
    /// `f32` or `f16`.
    accumulator: &'static str,
}

const FORMS: [Form; 6] = [
    Form {
        k: 16,
        kind: "f16",
        accumulator: "f32",
    },
    Form {
        k: 16,
        kind: "bf16",
        accumulator: "f32",
    },
    Form {
        k: 8,
        kind: "f16",
        accumulator: "f32",
    },
    Form {
        k: 8,
        kind: "bf16",
        accumulator: "f32",
    },
    Form {
        k: 16,
        kind: "f16",
        accumulator: "f16",
    },
    Form {
        k: 8,
        kind: "f16",
        accumulator: "f16",
    },
];

/// D = A B + C: A is 16 x k, B is k x 8, C is 16 x 8, each row by row.
#[derive(Debug, Clone)]
struct Problem {
    a: Vec<f64>,
    b: Vec<f64>,
    c: Vec<f64>,
}

impl Form {
    /// Registers of A, B and the accumulator.
    fn registers(self) -> [usize; 3] {
        [
            self.k / 4,
            self.k / 8,
            if self.accumulator == "f32" { 4 } else { 2 },
        ]
    }

    /// The kernel `case(out, in)`: slots of A, B and C in, slots of D out.
    fn ptx(self) -> String {
        let [na, nb, nc] = self.registers();
        let Form {
            k,
            kind,
            accumulator,
        } = self;
        let list = |name: char, count: usize| {
            (0..count)
                .map(|at| format!("%{name}{at}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let names = [('a', na), ('b', nb), ('c', nc)];
        let loads: String = names
            .iter()
            .flat_map(|&(name, count)| (0..count).map(move |at| format!("%{name}{at}")))
            .enumerate()
            .map(|(slot, register)| {
                format!("ld.global.b32 {register}, [%in+{}];\n", 8 * LANES * slot)
            })
            .collect();
        let stores: String = (0..nc)
            .map(|at| format!("st.global.b32 [%out+{}], %d{at};\n", 8 * LANES * at))
            .collect();
        format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n\
             .visible .entry case(.param .u64 out, .param .u64 in)\n{{\n\
             .reg .b32 %t, %a<4>, %b<2>, %c<4>, %d<4>;\n.reg .b64 %in, %out, %at;\n\
             ld.param.u64 %in, [in];\nld.param.u64 %out, [out];\nmov.u32 %t, %tid.x;\nmul.wide.u32 %at, %t, 8;\n\
             add.s64 %in, %in, %at;\nadd.s64 %out, %out, %at;\n{loads}\
             mma.sync.aligned.m16n8k{k}.row.col.{accumulator}.{kind}.{kind}.{accumulator} \
             {{{}}}, {{{}}}, {{{}}}, {{{}}};\n{stores}ret;\n}}\n",
            list('d', nc),
            list('a', na),
            list('b', nb),
            list('c', nc),
        )
    }

    /// Bits of an element of A and B.
    fn bits(self, value: f64) -> u32 {
        match self.kind {
            "bf16" => bf16::from_f64(value).to_bits().into(),
            _ => f16::from_f64(value).to_bits().into(),
        }
    }

    /// The value that an element of A and B has once stored.
    fn stored(self, value: f64) -> f64 {
        match self.kind {
            "bf16" => bf16::from_f64(value).to_f64(),
            _ => f16::from_f64(value).to_f64(),
        }
    }

    /// The registers of all lanes, slot by slot.
    fn fragments(self, problem: &Problem) -> Vec<u8> {
        let [na, nb, nc] = self.registers();
        let mut words = Vec::new();
        for register in 0..na {
            for lane in 0..LANES {
                // registers 1 and 3 hold rows 8 to 15; 2 and 3 hold columns 8 to 15
                let (row, column) = (
                    lane / 4 + 8 * (register % 2),
                    2 * (lane % 4) + 8 * (register / 2),
                );
                let at = row * self.k + column;
                words.push(self.bits(problem.a[at]) | self.bits(problem.a[at + 1]) << 16);
            }
        }
        for register in 0..nb {
            for lane in 0..LANES {
                let (row, column) = (2 * (lane % 4) + 8 * register, lane / 4);
                let at = |row: usize| self.bits(problem.b[row * COLUMNS + column]);
                words.push(at(row) | at(row + 1) << 16);
            }
        }
        for register in 0..nc {
            for lane in 0..LANES {
                words.push(match self.accumulator {
                    "f32" => (problem.c[place(register, lane)] as f32).to_bits(),
                    _ => {
                        let at = |index: usize| {
                            u32::from(f16::from_f64(problem.c[place(index, lane)]).to_bits())
                        };
                        at(2 * register) | at(2 * register + 1) << 16
                    }
                });
            }
        }
        words
            .into_iter()
            .flat_map(|word| u64::from(word).to_le_bytes())
            .collect()
    }

    /// D from the registers of all lanes.
    fn result(self, out: &[u8]) -> Vec<f64> {
        let mut d = vec![0.0; ROWS * COLUMNS];
        let word = |register: usize, lane: usize| {
            let at = 8 * (register * LANES + lane);
            u32::from_le_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]])
        };
        for index in 0..4 {
            for lane in 0..LANES {
                d[place(index, lane)] = match self.accumulator {
                    "f32" => f32::from_bits(word(index, lane)).into(),
                    _ => f16::from_bits((word(index / 2, lane) >> (16 * (index % 2))) as u16)
                        .to_f64(),
                };
            }
        }
        d
    }

    /// The product in f64, of the values as stored, and the sum of the sizes of its terms.
    fn reference(self, problem: &Problem) -> Vec<(f64, f64)> {
        let stored_c = |value: f64| match self.accumulator {
            "f32" => f64::from(value as f32),
            _ => f16::from_f64(value).to_f64(),
        };
        (0..ROWS * COLUMNS)
            .map(|at| {
                let (row, column) = (at / COLUMNS, at % COLUMNS);
                let mut sum = (stored_c(problem.c[at]), stored_c(problem.c[at]).abs());
                for k in 0..self.k {
                    let term = self.stored(problem.a[row * self.k + k])
                        * self.stored(problem.b[k * COLUMNS + column]);
                    sum = (sum.0 + term, sum.1 + term.abs());
                }
                sum
            })
            .collect()
    }

    fn run(self, problem: &Problem, device: Device, schedule: Schedule) -> Vec<f64> {
        let bench = Bench::load(&self.ptx()).unwrap();
        let input = bench.buffer(&self.fragments(problem));
        let bytes = 8 * LANES * self.registers()[2];
        let out = bench.memory.alloc(bytes as u64).unwrap();
        let options = Options {
            threads: 1,
            schedule,
            ..Options::default()
        };
        bench
            .run(&Call {
                device,
                options,
                ..Call::new(&[out, input])
            })
            .unwrap_or_else(|fault| panic!("{self:?}: {fault}"));
        self.result(&bench.read(out, bytes))
    }
}

/// Place in the accumulator matrix of element 0 to 3 of a lane.
fn place(index: usize, lane: usize) -> usize {
    (lane / 4 + 8 * (index / 2)) * COLUMNS + 2 * (lane % 4) + index % 2
}

/// Numbers from a seed, evenly spread over -1 to 1.
fn numbers(mut seed: u64) -> impl FnMut() -> f64 {
    move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f64 / f64::from(1 << 23) - 1.0
    }
}

fn filled(form: Form, mut value: impl FnMut() -> f64) -> Problem {
    let mut many = |count: usize| (0..count).map(|_| value()).collect();
    Problem {
        a: many(ROWS * form.k),
        b: many(form.k * COLUMNS),
        c: many(ROWS * COLUMNS),
    }
}

#[test]
fn products_of_small_whole_numbers_are_exact() {
    for form in FORMS {
        let mut number = numbers(7);
        let problem = filled(form, || (number() * 8.0).trunc());
        let expected: Vec<f64> = form
            .reference(&problem)
            .into_iter()
            .map(|(sum, _)| sum)
            .collect();
        for (device, schedule) in ways(80) {
            assert_eq!(form.run(&problem, device, schedule), expected, "{form:?}");
        }
    }
}

#[test]
fn products_of_any_numbers_are_near() {
    for form in FORMS {
        for seed in 0..4 {
            let mut number = numbers(seed);
            let scale = [1.0, 30.0, 1e-3, 0.1][seed as usize];
            let problem = filled(form, || scale * number());
            let found = form.run(&problem, Device::sm_80(), Schedule::LowestPc);
            for (at, (found, (sum, size))) in
                found.into_iter().zip(form.reference(&problem)).enumerate()
            {
                // f32 sums in any order; an f16 accumulator is rounded once more at its end, or gets subnormal
                let bound = match form.accumulator {
                    "f32" => size * f64::from(form.k as u32 + 1) * 2f64.powi(-23),
                    _ => size * 2f64.powi(-19) + sum.abs() * 2f64.powi(-11) + 2f64.powi(-25),
                };
                assert!(
                    (found - sum).abs() <= bound,
                    "{form:?}, seed {seed}, element {at}: {found} is not {sum}"
                );
            }
        }
    }
}

#[test]
fn each_element_lands_where_the_manual_says() {
    // one non-zero pair: A[i, k] B[k, j] shows in D[i, j] alone
    for form in FORMS {
        for (i, j, k) in [
            (0, 0, 0),
            (7, 3, 1),
            (8, 7, form.k - 1),
            (15, 4, form.k / 2),
            (3, 6, 5),
        ] {
            let mut problem = filled(form, || 0.0);
            problem.a[i * form.k + k] = 3.0;
            problem.b[k * COLUMNS + j] = 5.0;
            let found = form.run(&problem, Device::sm_80(), Schedule::LowestPc);
            let mut expected = vec![0.0; ROWS * COLUMNS];
            expected[i * COLUMNS + j] = 15.0;
            assert_eq!(found, expected, "{form:?}, i {i}, j {j}, k {k}");
        }
    }
}

#[test]
fn infinities_nans_and_subnormals_go_through() {
    for form in FORMS {
        let mut problem = filled(form, || 0.0);
        let tiny = if form.kind == "f16" {
            2f64.powi(-24)
        } else {
            2f64.powi(-133)
        };
        problem.a[0] = f64::INFINITY;
        problem.a[form.k] = f64::NAN;
        problem.a[2 * form.k] = tiny;
        for column in 0..COLUMNS {
            problem.b[column] = if column == 0 { 0.0 } else { 4.0 };
        }
        problem.c[3 * COLUMNS] = f64::NEG_INFINITY;
        let found = form.run(&problem, Device::sm_80(), Schedule::LowestPc);
        assert!(found[0].is_nan(), "{form:?}: infinity times zero");
        assert_eq!(found[1], f64::INFINITY, "{form:?}");
        assert!(
            found[COLUMNS..2 * COLUMNS]
                .iter()
                .all(|value| value.is_nan()),
            "{form:?}"
        );
        assert_eq!(
            found[2 * COLUMNS + 1],
            4.0 * tiny,
            "{form:?}: subnormal inputs count"
        );
        assert_eq!(found[3 * COLUMNS], f64::NEG_INFINITY, "{form:?}");
    }
}
