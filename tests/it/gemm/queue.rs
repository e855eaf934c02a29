//! How calls are queued: the same bits every time.

use half::f16;

use super::{ALL, Case, Problem};
use crate::support::device;

#[test]
fn ten_runs_give_the_same_bits() {
    let device = device();
    let stream = device.stream();
    for (m, n, k) in [(200, 300, 96), (3, 70, 500)] {
        let case = Case {
            batch: 2,
            extra: ALL,
            ..Case::of(m, n, k)
        };
        let run = || -> Vec<u16> {
            let mut problem = Problem::<f16, f16>::new(case, &stream);
            problem.queue(&device.gemm, &stream).unwrap();
            let d = problem.d.fetch(&stream, "d");
            d.into_iter().map(f16::to_bits).collect()
        };
        let first = run();
        for repeat in 1..10 {
            assert!(run() == first, "run {repeat} differs from the first");
        }
    }
}
