//! Problems for the matrix multiplication kernels without the library around them.

use cuda_emulator::Fault;
use half::f16;
use seqmix::abi::gemm::MultiplyParams;
use seqmix::reference::gemm as reference;

use crate::bare::{Arguments, Bare, Buffers};
use crate::measure::{Bound, Verdict};
use crate::naive::{Number, bound, normal};
use crate::planted::Problem;

/// `d = a b + c + bias + residual` in f16, and the sums of the columns of d. All lie row by row but b, which lies column
/// by column.
pub(super) struct Layer {
    kernel: &'static str,
    m: usize,
    n: usize,
    k: usize,
    /// Elements between two lines of a matrix.
    gap: usize,
    /// Where groups of rows begin, each with its own b, as the kernel is told; none if empty.
    offsets: Vec<i32>,
    /// a, b, c, bias and residual.
    inputs: [Vec<f16>; 5],
    expected: Vec<f64>,
    bound: Bound,
    /// How many rows a tile of d has.
    rows_of_tile: usize,
    /// How many tiles d has.
    tiles: usize,
}

impl Layer {
    /// A problem for `kernel`, of these sizes.
    pub(super) fn new(kernel: &'static str, [m, n, k]: [usize; 3], gap: usize) -> Self {
        Self::grouped(kernel, [m, n, k], gap, Vec::new())
    }

    /// The same with its rows in groups. The last ends with the rows, whatever its offset claims.
    pub(super) fn grouped(
        kernel: &'static str,
        [m, n, k]: [usize; 3],
        gap: usize,
        offsets: Vec<i32>,
    ) -> Self {
        let groups = offsets.len().saturating_sub(1).max(1);
        let inputs = [
            (1, m * k),
            (2, groups * n * k),
            (3, m * n),
            (4, n),
            (5, m * n),
        ];
        let inputs = inputs.map(|(seed, count)| normal::<f16>(seed, count, 1.0));
        let [a, b, c, bias, residual] = inputs.each_ref().map(|x| widen(x));
        let (mut expected, mut naive) = (Vec::new(), Vec::new());
        for group in 0..groups {
            let row = |at: usize| offsets.get(at).map_or(at * m, |&row| (row as usize).min(m));
            let (first, last) = (row(group), row(group + 1));
            let b = &b[group * n * k..][..n * k];
            let b: Vec<f64> = (0..k * n).map(|at| b[at % n * k + at / n]).collect();
            let problem = reference::Multiply {
                batch: 1,
                m: last - first,
                n,
                k,
                a: &a[first * k..last * k],
                b: &b,
                c: Some(&c[first * n..last * n]),
                bias: Some(&bias),
                residual: Some(&residual[first * n..last * n]),
                ..reference::Multiply::default()
            };
            expected.extend(problem.run().unwrap().d);
            naive.extend(problem.run_rounded(f16::round).unwrap().d);
        }
        let tile = kernel.split('_').find_map(|part| part.split_once('x'));
        let (rows, columns) = tile.expect("a name with a tile");
        let (rows, columns): (usize, usize) = (rows.parse().unwrap(), columns.parse().unwrap());
        Self {
            kernel,
            m,
            n,
            k,
            gap,
            offsets,
            inputs,
            bound: bound::<f16>(&expected, &naive, n).unwrap(),
            expected,
            rows_of_tile: rows,
            // groups may each need a tile more than their rows fill
            tiles: (m.div_ceil(rows) + groups - 1) * n.div_ceil(columns),
        }
    }

    /// Lines of `width` elements with NaN between them, and nothing behind the last.
    fn spread(&self, elements: &[f16], width: usize) -> Vec<f16> {
        let lines: Vec<&[f16]> = elements.chunks(width).collect();
        lines.join(&vec![f16::NAN; self.gap][..])
    }

    /// The sums that the kernel writes for each tile of rows, added up, against those of what was expected.
    fn judge_sums(&self, sums: &[f32]) -> Verdict {
        let column = |at: usize| self.expected[at..].iter().step_by(self.n);
        let expected: Vec<f64> = (0..self.n).map(|at| column(at).sum()).collect();
        let sizes = (0..self.n).map(|at| column(at).map(|x| x.abs()).sum());
        let largest = sizes.fold(0.0, f64::max);
        let tiles = |at: usize| sums[at..].iter().step_by(self.n);
        let found: Vec<f64> = (0..self.n)
            .map(|at| tiles(at).map(|&x| f64::from(x)).sum())
            .collect();
        let within = Bound {
            // a rounding for each addition in f32
            max_abs: self.m as f64 * f64::from(f32::EPSILON) * largest,
            rel_l2: None,
            row_rel_l2: None,
        };
        Verdict::of(&found, &expected, self.n, within)
    }
}

impl Problem for Layer {
    fn kernel(&self) -> &str {
        self.kernel
    }

    fn grid(&self) -> [u32; 3] {
        [self.tiles as u32, 1, 1]
    }

    fn run(&self, bare: &Bare<'_>) -> Result<Vec<Verdict>, Box<Fault>> {
        let Self { m, n, k, gap, .. } = *self;
        let [a, b, c, bias, residual] = &self.inputs;
        let buffers = Buffers::new();
        let d = buffers.upload(&self.spread(&vec![f16::NAN; m * n], n));
        let mut arguments = Arguments::new(MultiplyParams::PARAMS);
        let mut matrix = |name: &str, at: u64, width: usize| {
            let stride = width + gap;
            let vector = i32::from(stride.is_multiple_of(8));
            arguments.set(&format!("{name}.at"), at);
            arguments.set(&format!("{name}.row_stride"), stride as i64);
            arguments.set(&format!("{name}.column_stride"), 1_i64);
            arguments.set(&format!("{name}.vector"), vector);
        };
        matrix("a", buffers.upload(&self.spread(a, k)), k);
        matrix("b", buffers.upload(&self.spread(b, k)), k);
        matrix("c", buffers.upload(&self.spread(c, n)), n);
        matrix("bias", buffers.upload(bias), n);
        matrix("residual", buffers.upload(&self.spread(residual, n)), n);
        matrix("d", d, n);
        arguments.set("b.batch_stride", (n * (k + gap)) as i64);
        for (name, size) in [("m", m), ("n", n), ("k", k), ("splits", 1)] {
            arguments.set(name, size as i32);
        }
        arguments.set("alpha", 1_f32);
        arguments.set("beta", 1_f32);
        let mut sums = None;
        if self.offsets.is_empty() {
            let count = m.div_ceil(self.rows_of_tile) * n;
            let at = buffers.output::<f32>(count);
            arguments.set("column_sums", at);
            sums = Some((at, count));
        } else {
            arguments.set("grouping", 1_i32);
            arguments.set("groups", self.offsets.len() as i32 - 1);
            arguments.set("offsets", buffers.upload(&self.offsets));
        }
        bare.launch(&buffers, &arguments.bytes)?;

        let found: Vec<f16> = buffers.download(d, m * (n + gap) - gap);
        let found: Vec<f16> = found
            .chunks(n + gap)
            .flat_map(|row| row[..n].to_vec())
            .collect();
        let mut verdicts = vec![Verdict::of(&widen(&found), &self.expected, n, self.bound)];
        if let Some((at, count)) = sums {
            verdicts.push(self.judge_sums(&buffers.download(at, count)));
        }
        Ok(verdicts)
    }
}

fn widen(x: &[f16]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}
