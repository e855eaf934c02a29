//! A whole matrix multiplication for Hopper in its variants: right to a bound on ragged problems, and silent.

mod consumer;
mod kernel;

use std::iter;

use half::{bf16, f16};

use crate::emulator::{Bench, Call, ways};
use cuda_emulator::{Device, Fault, Options, TensorMap, TensorType};
use kernel::{Gemm, Major, SIDE, Source};

/// The variants that are tested.
pub(crate) const VARIANTS: [Gemm; 4] = [
    Gemm {
        name: "A in shared memory, two warpgroups",
        element: "f16",
        a: Source::Shared,
        b: Major::K,
        cluster: 1,
        groups: 2,
        stages: 3,
    },
    Gemm {
        name: "A in registers",
        element: "bf16",
        a: Source::Registers,
        b: Major::K,
        cluster: 1,
        groups: 1,
        stages: 4,
    },
    Gemm {
        name: "B for a cluster",
        element: "f16",
        a: Source::Shared,
        b: Major::K,
        cluster: 2,
        groups: 1,
        stages: 3,
    },
    Gemm {
        name: "B by columns",
        element: "f16",
        a: Source::Registers,
        b: Major::N,
        cluster: 1,
        groups: 1,
        stages: 2,
    },
];

/// Sizes of a problem.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

impl Gemm {
    fn encode(&self, value: f64) -> [u8; 2] {
        match self.element {
            "bf16" => bf16::from_f64(value).to_le_bytes(),
            _ => f16::from_f64(value).to_le_bytes(),
        }
    }

    fn decode(&self, bytes: [u8; 2]) -> f64 {
        match self.element {
            "bf16" => bf16::from_le_bytes(bytes).to_f64(),
            _ => f16::from_le_bytes(bytes).to_f64(),
        }
    }

    /// The value of the element type nearest to a fraction of 1, either sign, that follows from where it stands.
    fn value(&self, row: usize, column: usize, salt: u32) -> f64 {
        let mixed = (row as u32)
            .wrapping_mul(0x9e37_79b1)
            .wrapping_add(column as u32)
            .wrapping_add(salt)
            .wrapping_mul(0x85eb_ca6b);
        let mixed = (mixed ^ mixed >> 15).wrapping_mul(0xc2b2_ae35);
        self.decode(self.encode(f64::from((mixed >> 8) as i32 - (1 << 23)) / f64::from(1 << 23)))
    }

    fn a(&self, row: usize, k: usize) -> f64 {
        self.value(row, k, 1)
    }

    fn b(&self, column: usize, k: usize) -> f64 {
        self.value(column, k, 0xb)
    }

    /// Elements from a row of a tensor map's tensor to the next: its strides are multiples of 16 bytes.
    fn pitch(columns: usize) -> usize {
        columns.next_multiple_of(8)
    }

    /// The bytes of a matrix whose rows end in NaN.
    fn matrix(&self, rows: usize, columns: usize, value: impl Fn(usize, usize) -> f64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for row in 0..rows {
            bytes.extend((0..columns).flat_map(|column| self.encode(value(row, column))));
            bytes.extend(iter::repeat_n([0xff; 2], Self::pitch(columns) - columns).flatten());
        }
        bytes
    }

    fn map(&self, address: u64, rows: usize, columns: usize, box_rows: usize) -> Vec<u8> {
        let element = match self.element {
            "bf16" => TensorType::Bf16,
            _ => TensorType::F16,
        };
        let map = TensorMap {
            element,
            address,
            dims: vec![columns as u64, rows as u64],
            strides: vec![2 * Self::pitch(columns) as u64],
            boxes: vec![SIDE as u32, box_rows as u32],
            steps: vec![1, 1],
            swizzle: 128,
            nan_fill: false,
        };
        map.encode().unwrap().to_vec()
    }

    /// Runs a text of the kernel by `clusters` clusters; the bytes of C, with those between its rows.
    pub(crate) fn run(
        &self,
        text: &str,
        sizes: Sizes,
        clusters: usize,
        device: Device,
        options: Options,
    ) -> Result<Vec<u8>, Fault> {
        let Sizes { m, n, k } = sizes;
        let bench = Bench::load(text).unwrap_or_else(|error| panic!("{error}"));
        let a = bench.buffer(&self.matrix(m, k, |row, k| self.a(row, k)));
        let (b, b_map) = match self.b {
            Major::K => {
                let b = bench.buffer(&self.matrix(n, k, |column, k| self.b(column, k)));
                (b, self.map(b, n, k, self.b_rows()))
            }
            Major::N => {
                let b = bench.buffer(&self.matrix(k, n, |k, column| self.b(column, k)));
                (b, self.map(b, k, n, SIDE))
            }
        };
        assert!(a != b);
        let bytes = 2 * m * Self::pitch(n);
        let c = bench.memory.alloc(bytes as u64).unwrap();
        let across = n.div_ceil(SIDE);
        let tiles = m.div_ceil(self.rows() * self.cluster) * across;
        let maps = [
            self.map(a, m, k, self.rows()),
            b_map,
            self.map(c, m, n, SIDE),
        ];
        let numbers = [k.div_ceil(SIDE), across, tiles].map(|number| (number as u32).to_le_bytes());
        bench.run(&Call {
            device,
            options,
            grid: [(clusters * self.cluster) as u32, 1, 1],
            block: [self.threads() as u32, 1, 1],
            dynamic: self.shared() as u32,
            params: [maps.concat(), numbers.concat()].concat(),
            ..Call::new(&[])
        })?;
        Ok(bench.read(c, bytes))
    }

    /// Every element of C with the error that is allowed, row by row.
    ///
    /// A sum of K products in f32, in any order and with chopped additions, is off by at most K 2^-23 times the sum of
    /// their sizes; the result is then rounded to the element type.
    fn expected(&self, Sizes { m, n, k }: Sizes) -> Vec<(f64, f64)> {
        let unit = match self.element {
            "bf16" => 2f64.powi(-8),
            _ => 2f64.powi(-11),
        };
        let values = |count, value: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..count * k).map(|at| value(at / k, at % k)).collect()
        };
        let a = values(m, &|row, k| self.a(row, k));
        let b = values(n, &|column, k| self.b(column, k));
        let cell = |at: usize| {
            let products = iter::zip(&a[at / n * k..][..k], &b[at % n * k..][..k]);
            let (sum, size) = products.fold((0.0, 0.0), |(sum, size), (a, b)| {
                (sum + a * b, size + (a * b).abs())
            });
            let sums = k as f64 * 2f64.powi(-23) * size;
            (sum, sums + unit * (sum.abs() + sums) + 2f64.powi(-25))
        };
        (0..m * n).map(cell).collect()
    }

    /// Asserts that C is right, and that nothing was written between its rows.
    fn check(&self, c: &[u8], sizes: Sizes, expected: &[(f64, f64)], name: &str) {
        for (row, cells) in c.chunks_exact(2 * Self::pitch(sizes.n)).enumerate() {
            for (column, cell) in cells.chunks_exact(2).enumerate() {
                if column >= sizes.n {
                    assert_eq!(cell, [0xff; 2], "row {row}, column {column} of {name}");
                    continue;
                }
                let (value, bound) = expected[row * sizes.n + column];
                let found = self.decode([cell[0], cell[1]]);
                assert!(
                    (found - value).abs() <= bound,
                    "row {row}, column {column} of {name}: {found} is not {value} to {bound}"
                );
            }
        }
    }
}

#[test]
fn products_of_ragged_problems_are_right_and_raise_no_alarm() {
    let problems = [
        [1, 1, 8],
        [65, 72, 40],
        [130, 200, 136],
        [257, 8, 24],
        [3, 65, 333],
        [129, 71, 449],
    ];
    for gemm in VARIANTS {
        let text = gemm.text();
        for (at, [m, n, k]) in problems.into_iter().enumerate() {
            let sizes = Sizes { m, n, k };
            let expected = gemm.expected(sizes);
            for (clusters, (device, schedule)) in iter::zip([1, 3, 2, 4], ways(90)) {
                let options = Options {
                    threads: 1 + (at + clusters) % 4,
                    schedule,
                    max_instructions: 1 << 24,
                    ..Options::default()
                };
                let name = format!("{}, {sizes:?}, {clusters} clusters, {options:?}", gemm.name);
                let c = gemm
                    .run(&text, sizes, clusters, device, options)
                    .unwrap_or_else(|fault| panic!("{name}: {fault}"));
                gemm.check(&c, sizes, &expected, &name);
            }
        }
    }
}
