//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::rwkv4::Step;
use seqmix::{Tensor, Workspace, kernels};

use super::{Case, Problem};
use crate::naive::{Number, normal};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// Two blocks of channels, and steps of whole groups in each of two segments.
const DIM: usize = 256;
const SEQLEN: usize = 64;

/// Floats of a channel: decay and bonus.
const PARAMETERS: usize = 2;

#[test]
fn every_kernel_reads_and_writes_each_number_once() {
    let mut launched = BTreeSet::new();
    sequence::<f16>(&mut launched);
    sequence::<bf16>(&mut launched);
    sequence::<f32>(&mut launched);
    step::<f16>(&mut launched);
    step::<bf16>(&mut launched);
    step::<f32>(&mut launched);
    if device().driver == Driver::Cuda {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table = table.filter(|name| name.starts_with("rwkv4_"));
    assert_eq!(
        launched,
        table.collect(),
        "the kernels that ran, and those of the table"
    );
}

/// Bytes that a kernel must read and write, in whole sectors and without atomics.
fn judge(report: &Report, read: usize, written: usize, launched: &mut BTreeSet<String>) {
    let (loads, stores) = (&report.global_loads, &report.global_stores);
    assert_eq!(loads.unique_bytes, read as u64, "{report}");
    assert_eq!(stores.unique_bytes, written as u64, "{report}");
    assert_eq!(stores.bytes, written as u64, "{report}");
    assert_eq!(SECTOR * stores.sectors, written as u64, "{report}");
    assert_eq!(report.bank_conflicts(), 0, "{report}");
    assert_eq!(report.atomics, 0, "{report}");
    launched.insert(report.kernel.clone());
}

/// Nothing is read twice.
fn once(report: &Report) {
    let loads = &report.global_loads;
    assert_eq!(SECTOR * loads.sectors, loads.unique_bytes, "{report}");
}

fn sequence<T: Number>(launched: &mut BTreeSet<String>) {
    let stream = device().stream();
    let signal = size_of::<T>() * SEQLEN * DIM;
    let channels = 4 * DIM;
    let parameters = PARAMETERS * channels;
    let (average, turn, sums) = (4 * channels, 3 * channels, 2 * channels);
    let groups = SEQLEN / 8;
    let case = Case {
        states: false,
        ..Case::of(1, SEQLEN, DIM)
    };
    let run = |case: Case| {
        let mut problem = Problem::<T>::new(case, &stream);
        let mut workspace = Workspace::new(&stream);
        problem.queue_forward(&stream, &mut workspace).unwrap();
        let forward = take_thread_reports();
        let mut tensors = problem.backward();
        tensors.dinitial_state = None;
        let op = &device().rwkv4;
        let plan = op.backward_plan(case.config(), &tensors).unwrap();
        workspace.reserve(plan.workspace_bytes()).unwrap();
        op.backward(&stream, case.config(), tensors, &mut workspace)
            .unwrap();
        (forward, take_thread_reports())
    };
    let (forward, backward) = run(case.cut(1));
    if device().driver == Driver::Cuda {
        return;
    }
    let ([out], [states, main, total]) = (&forward[..], &backward[..]) else {
        panic!("{} and {} launches", forward.len(), backward.len());
    };
    judge(out, 2 * signal + parameters, signal, launched);
    // what reads no average needs no bonus
    judge(states, 2 * signal + channels, groups * average, launched);
    let read = 3 * signal + parameters + groups * average;
    judge(main, read, 2 * signal + sums, launched);
    judge(total, sums, sums, launched);
    for report in [out, states, main, total] {
        once(report);
    }

    let (forward, backward) = run(case.cut(2));
    let ([ends, out], [again, turns, main, total]) = (&forward[..], &backward[..]) else {
        panic!("{} and {} launches", forward.len(), backward.len());
    };
    for ends in [ends, again] {
        judge(ends, signal + channels, average, launched); // a half of k and v
        once(ends);
    }
    judge(out, 2 * signal + parameters + average, signal, launched);
    let read = 3 * signal + parameters + average;
    judge(turns, read, groups * average + 2 * turn, launched);
    let read = 3 * signal + parameters + groups * average + turn;
    judge(main, read, 2 * signal + 2 * sums, launched);
    judge(total, 2 * sums, sums, launched);
}

/// A step reads and writes its states once, in whole sectors.
fn step<T: Number>(launched: &mut BTreeSet<String>) {
    let stream = device().stream();
    let batch = 3;
    let row = Tensor::from_host(&stream, &normal::<T>(1, batch * DIM, 1.0), [batch, DIM]).unwrap();
    let vector = Tensor::<f32, 1>::zeros(&stream, [DIM]).unwrap();
    let ones = vec![1.0_f32; batch * DIM];
    let [mut numerator, mut denominator, mut exponent] =
        [(); 3].map(|()| Tensor::from_host(&stream, &ones, [batch, DIM]).unwrap());
    let mut out = Tensor::<T, 2>::zeros(&stream, [batch, DIM]).unwrap();
    let tensors = Step {
        k: row.view(),
        v: row.view(),
        decay: vector.view(),
        bonus: vector.view(),
        state: seqmix::rwkv4::StateMut {
            numerator: numerator.view_mut(),
            denominator: denominator.view_mut(),
            exponent: exponent.view_mut(),
        },
        state_batch_indices: None,
        out: out.view_mut(),
    };
    device().rwkv4.step(&stream, tensors).unwrap();
    let states = 3 * 4 * batch * DIM;
    let elements = size_of::<T>() * batch * DIM;
    for report in take_thread_reports() {
        // k and v are one tensor here, decay and bonus too
        judge(
            &report,
            states + elements + 4 * DIM,
            states + elements,
            launched,
        );
    }
}
