//! How calls are queued: the same bits every time, captured into graphs, with tensors that are dropped.

use half::{bf16, f16};
use seqmix::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use seqmix::gemm::{Activation, Config, Gemm};

use super::problem::Problem;
use super::{
    ALL, Case, Columns, EVERYTHING, Epilogue, Extra, Groups, Low, NOTHING, PLAIN, Rows, TILES,
    judge,
};
use crate::naive::Number;
use crate::support::device;

/// Fails if ten runs differ in a bit of anything they write.
fn check_ten<T: Number, D: Number>(case: Case) {
    let device = device();
    let stream = device.stream();
    let run = || {
        let mut problem = Problem::<T, D>::new(case, &stream);
        problem.run(&device.gemm, &stream).unwrap();
        problem.fetch(&stream).bits()
    };
    let first = run();
    for repeat in 1..10 {
        let same = run() == first;
        assert!(same, "{case:?}: run {repeat} differs from the first");
    }
}

const ADAPTER: Extra = Extra {
    adapter: Some(Low {
        rank: 20,
        down: Rows,
        up: Columns,
    }),
    ..EVERYTHING
};

#[test]
fn ten_runs_give_the_same_bits() {
    for tile in TILES {
        let config = Config {
            tile: Some(tile),
            ..PLAIN
        };
        let case = Case {
            config,
            extra: EVERYTHING,
            ..Case::of(40, 136, 72)
        };
        for epilogue in [Epilogue::Activate, Epilogue::Gate, Epilogue::GateBackward] {
            check_ten::<f16, f16>(case.with(epilogue, Activation::Silu));
        }
    }
    for (m, n, k) in [(200, 300, 96), (3, 70, 500)] {
        check_ten::<bf16, f32>(Case {
            batch: 2,
            extra: EVERYTHING,
            ..Case::of(m, n, k)
        });
    }
}

#[test]
fn ten_runs_of_every_other_kernel_give_the_same_bits() {
    for tile in [(128, 128), (32, 64)] {
        let config = Config {
            tile: Some(tile),
            ..PLAIN
        };
        check_ten::<bf16, bf16>(Case {
            config,
            extra: ADAPTER,
            ..Case::of(70, 150, 100)
        });
    }
    let in_parts = Case {
        config: Config {
            splits: Some(5),
            ..PLAIN
        },
        extra: ALL,
        ..Case::of(30, 70, 700)
    };
    check_ten::<f16, f16>(in_parts);
    check_ten::<bf16, f32>(in_parts);
    let extra = Extra {
        column_sums: false,
        ..EVERYTHING
    };
    for groups in [
        Groups::Rows(&[0, 20, 20, 75, 90]),
        Groups::K(&[3, 20, 20, 75, 90]),
    ] {
        check_ten::<f16, f16>(Case {
            groups,
            extra,
            ..Case::of(90, 50, 90)
        });
    }
}

/// Calls with one kernel, with two, and with sums that a second kernel adds.
#[test]
fn a_captured_call_runs_when_its_graph_does() {
    // A context of one's own: event tracking, which capture cannot hold, is switched for all its tensors.
    device();
    let context = seqmix::context(0).unwrap();
    // SAFETY: every tensor of this context is used on the one stream below.
    unsafe { context.disable_event_tracking() };
    let gemm = Gemm::new(&context).unwrap();
    let stream = context.new_stream().unwrap();
    let case = Case {
        extra: EVERYTHING,
        activation: Activation::Silu,
        ..Case::of(70, 90, 300)
    };
    let in_parts = Case {
        config: Config {
            splits: Some(4),
            ..PLAIN
        },
        extra: ALL,
        ..case
    };
    for case in [case.with(Epilogue::Gate, Activation::Silu), in_parts, case] {
        let name = format!("captured {case:?}");
        let mut problem = Problem::<f16, f16>::new(case, &stream);
        let mut workspace = problem.workspace(&gemm, &stream).unwrap();
        stream.synchronize().unwrap();

        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .unwrap();
        problem.queue(&gemm, &stream, &mut workspace).unwrap();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream
            .end_capture(flags)
            .unwrap()
            .expect("the call queued nothing");
        let found = problem.fetch(&stream);
        let untouched = found.d.iter().all(|x| x.is_nan());
        assert!(untouched, "{name}: a kernel ran while it was captured");

        graph.launch().unwrap();
        let found = problem.fetch(&stream);
        judge(&name, &problem, &found);
        // the second run finds what the first one left in the workspace
        graph.launch().unwrap();
        let again = problem.fetch(&stream);
        assert_eq!(again.d, found.d, "{name}: the second run");
        assert_eq!(
            again.column_sums, found.column_sums,
            "{name}: the second run"
        );
    }
}

/// Tensors and the workspace may be dropped as soon as the call is queued.
#[test]
fn dropped_memory_stays_valid_until_the_kernels_have_run() {
    let device = device();
    let stream = device.stream();
    let case = Case {
        config: Config {
            splits: Some(3),
            ..PLAIN
        },
        extra: NOTHING,
        ..Case::of(50, 60, 400)
    };
    let mut problem = Problem::<f16, f16>::new(case, &stream);
    problem.run(&device.gemm, &stream).unwrap(); // the workspace is gone
    let expected = super::expected::Expected::of(&problem, |x| x);
    let d = problem.into_d();
    // memory that the driver may give to the next allocation
    let other = Problem::<f16, f16>::new(case, &stream);
    let found = d
        .fetch(&stream, "d")
        .into_iter()
        .map(Into::into)
        .collect::<Vec<f64>>();
    let within = super::strict::<f16>(&expected.d, f16::UNIT, case.k);
    crate::support::assert_close("dropped", &found, &expected.d, case.n, within);
    drop(other);
}
