//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::lru::Step;
use seqmix::{Tensor, Workspace, kernels};

use super::{Case, Problem};
use crate::naive::{Number, normal};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// Two blocks of states, and steps of whole groups in each of two segments.
const STATES: usize = 256;
const SEQLEN: usize = 64;

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
    let table = table.filter(|name| name.starts_with("lru_"));
    assert_eq!(
        launched,
        table.collect(),
        "the kernels that ran, and those of the table"
    );
}

/// Bytes that a kernel must read and write, each once, in whole sectors and without atomics.
fn judge(report: &Report, read: usize, written: usize, launched: &mut BTreeSet<String>) {
    let (loads, stores) = (&report.global_loads, &report.global_stores);
    assert_eq!(loads.unique_bytes, read as u64, "{report}");
    assert_eq!(SECTOR * stores.sectors, written as u64, "{report}");
    assert_eq!(stores.unique_bytes, written as u64, "{report}");
    assert_eq!(stores.bytes, written as u64, "{report}");
    assert_eq!(report.bank_conflicts(), 0, "{report}");
    assert_eq!(report.atomics, 0, "{report}");
    launched.insert(report.kernel.clone());
}

fn sequence<T: Number>(launched: &mut BTreeSet<String>) {
    let stream = device().stream();
    let signal = 2 * size_of::<T>() * SEQLEN * STATES;
    let numbers = 8 * STATES;
    let parameters = numbers + 4 * STATES;
    let stretch = 2 * numbers;
    let kept = SEQLEN / 8 * numbers;
    let case = Case {
        ends: false,
        ..Case::of(1, SEQLEN, STATES)
    };
    let run = |case: Case| {
        let mut problem = Problem::<T>::new(case, &stream);
        let mut workspace = Workspace::new(&stream);
        problem.queue_forward(&stream, &mut workspace).unwrap();
        let forward = take_thread_reports();
        let mut tensors = problem.backward();
        tensors.dinitial_state = None;
        let op = &device().lru;
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
    judge(out, signal + parameters, signal, launched);
    judge(states, signal + parameters, kept, launched);
    judge(
        main,
        2 * signal + parameters + kept,
        signal + stretch,
        launched,
    );
    judge(total, stretch, parameters, launched);
    for report in [out, states, main, total] {
        let loads = &report.global_loads;
        assert_eq!(SECTOR * loads.sectors, loads.unique_bytes, "{report}");
    }

    let (forward, backward) = run(case.cut(2));
    let ([ends, out], [again, turns, main, total]) = (&forward[..], &backward[..]) else {
        panic!("{} and {} launches", forward.len(), backward.len());
    };
    for ends in [ends, again] {
        judge(ends, signal / 2 + parameters, stretch, launched);
    }
    judge(out, signal + parameters + stretch, signal, launched);
    let read = 2 * signal + parameters + stretch;
    judge(turns, read, kept + 2 * stretch, launched);
    let read = 2 * signal + parameters + kept + stretch;
    judge(main, read, signal + 2 * stretch, launched);
    judge(total, 2 * stretch, parameters, launched);
}

/// A step reads and writes its states once, in whole sectors.
fn step<T: Number>(launched: &mut BTreeSet<String>) {
    let stream = device().stream();
    let batch = 3;
    let x = normal::<T>(1, 2 * batch * STATES, 1.0);
    let x = Tensor::from_host(&stream, &x, [batch, STATES, 2]).unwrap();
    let a = Tensor::<f32, 2>::zeros(&stream, [STATES, 2]).unwrap();
    let mut state = Tensor::<f32, 3>::zeros(&stream, [batch, STATES, 2]).unwrap();
    let mut out = Tensor::<T, 3>::zeros(&stream, [batch, STATES, 2]).unwrap();
    let tensors = Step {
        x: x.view(),
        a: a.view(),
        gamma: None,
        state: state.view_mut(),
        state_batch_indices: None,
        out: out.view_mut(),
    };
    device().lru.step(&stream, tensors).unwrap();
    let moved = (8 + 2 * size_of::<T>()) * batch * STATES;
    for report in take_thread_reports() {
        judge(&report, moved + 8 * STATES, moved, launched);
    }
}
