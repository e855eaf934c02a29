//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::{Workspace, kernels};

use super::{Case, Problem};
use crate::naive::Number;
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// More than a span of steps, which is no multiple of a tile.
const SEQLEN: usize = 68;

#[test]
fn every_kernel_reads_and_writes_each_number_once() {
    let mut launched = BTreeSet::new();
    for size in [32, 64, 128] {
        sequence::<bf16>(size, &mut launched);
    }
    sequence::<f16>(32, &mut launched);
    sequence::<f32>(64, &mut launched);
    if device().driver == Driver::Cuda {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table = table.filter(|name| name.starts_with("rwkv7_"));
    assert_eq!(
        launched,
        table.collect(),
        "the kernels that ran, and those of the table"
    );
}

/// Bytes that a kernel must read and write, each once, in whole sectors and without atomics or bank conflicts.
fn judge(report: &Report, read: usize, written: usize, launched: &mut BTreeSet<String>) {
    let (loads, stores) = (&report.global_loads, &report.global_stores);
    assert_eq!(loads.unique_bytes, read as u64, "{report}");
    assert_eq!(SECTOR * loads.sectors, read as u64, "{report}");
    assert_eq!(stores.unique_bytes, written as u64, "{report}");
    assert_eq!(stores.bytes, written as u64, "{report}");
    assert_eq!(SECTOR * stores.sectors, written as u64, "{report}");
    assert_eq!(report.bank_conflicts(), 0, "{report}");
    assert_eq!(report.atomics, 0, "{report}");
    launched.insert(report.kernel.clone());
}

fn sequence<T: Number>(size: usize, launched: &mut BTreeSet<String>) {
    let stream = device().stream();
    let case = Case::of(1, SEQLEN, 2, size);
    let numbers = SEQLEN * 2 * size;
    let (elements, floats) = (size_of::<T>() * numbers, 4 * numbers);
    let states = 4 * 2 * size * size;
    let mut problem = Problem::<T>::new(case.cut(1), &stream);
    problem.queue_forward(&stream).unwrap();
    let forward = take_thread_reports();
    let mut workspace = Workspace::new(&stream);
    problem.queue_backward(&stream, &mut workspace).unwrap();
    let gradients = take_thread_reports();
    // without states: four channels of one are not a sector
    let states_absent = Case {
        states: false,
        ..case
    };
    let mut narrow = Problem::<T>::new(states_absent.cut(4), &stream);
    narrow.queue_forward(&stream).unwrap();
    let slices = take_thread_reports();
    if device().driver == Driver::Cuda {
        return;
    }
    let ([forward], [backward, replay], [slices]) = (&forward[..], &gradients[..], &slices[..])
    else {
        panic!("{} and {} launches", forward.len(), gradients.len());
    };
    let read = 5 * elements + floats;
    judge(forward, read + states, elements + floats + states, launched);
    // dout, lookups and the last gradient; gradients of k, v, b, of lookups, what ddecay is made of, of states
    let read = 6 * elements + 2 * floats + states;
    let spans = SEQLEN.div_ceil(64) * states;
    let written = 3 * elements + 2 * floats + states + spans;
    judge(backward, read, written, launched);
    // the gradients of r, a and decays
    let read = 6 * elements + 4 * floats + states + spans;
    judge(replay, read, 2 * elements + floats, launched);
    // each of the four blocks reads the keys of its head
    let loads = &slices.global_loads;
    let (keys, values) = (4 * elements + floats, elements);
    assert_eq!(loads.unique_bytes, (keys + values) as u64, "{slices}");
    assert_eq!(slices.bank_conflicts(), 0, "{slices}");
    assert_eq!(slices.atomics, 0, "{slices}");
    let stores = &slices.global_stores;
    assert_eq!(stores.bytes, (elements + floats) as u64, "{slices}");
    // a slice of 32 channels in 16 bits has 16 bytes, half a sector
    let whole = size / 4 * size_of::<T>() >= SECTOR as usize;
    let sectors = (4 * keys + values) as u64 / SECTOR;
    if whole {
        assert_eq!(loads.sectors, sectors, "{slices}");
        assert_eq!(SECTOR * stores.sectors, stores.bytes, "{slices}");
    }
    launched.insert(slices.kernel.clone());
}
