//! What the kernels do to memory, by the emulator's counters. A GPU has none of these: there the problems run and
//! their numbers are checked, and nothing is counted.

use std::collections::BTreeSet;
use std::io::Write;

use cuda_emulator::{Driver, Report, take_thread_reports};
use half::{bf16, f16};
use seqmix::causal_conv1d::{Backward, Config, Update};
use seqmix::{Tensor, Workspace, kernels};

use super::{ALONG, Case, Problem, check_forward};
use crate::naive::{Number, normal};
use crate::support::device;

/// Bytes of a sector, the unit in which global memory is read and written.
const SECTOR: u64 = 32;

/// Channels and steps: several tiles along both axes, whole ones and parts, and rows of whole sectors.
const DIM: usize = 160;
const SEQLEN: usize = 2304;

/// What a kernel may read more than once, of all that it reads: the steps next to its tiles. They are 3 or 7 steps of
/// 256 before a tile of the forward pass, and of 128 on both sides in the backward pass.
const BESIDE: [(usize, f64, f64); 2] = [(4, 0.03, 0.06), (8, 0.06, 0.12)];

#[test]
fn every_kernel_uses_shared_and_global_memory_well() {
    let mut launched = BTreeSet::new();
    for along in ALONG {
        for (width, forward, backward) in BESIDE {
            let case = Case {
                width,
                states: false,
                ..Case::of(DIM, SEQLEN, along)
            };
            check::<f16>(case, forward, backward, &mut launched);
            check::<bf16>(case, forward, backward, &mut launched);
            check::<f32>(case, forward, backward, &mut launched);
        }
    }
    update::<f16>(&mut launched);
    update::<bf16>(&mut launched);
    update::<f32>(&mut launched);
    if device().driver == Driver::Cuda {
        let note = "a GPU has no counters: bank conflicts and sectors were not checked";
        writeln!(std::io::stderr(), "{note}").unwrap();
        return;
    }
    let table = kernels().iter().map(|info| info.name.to_owned());
    let table = table.filter(|name| name.starts_with("causal_conv1d_"));
    assert_eq!(
        launched,
        table.collect(),
        "the kernels that ran, and those of the table"
    );
}

/// What this thread launched; nothing on a GPU.
fn reports(launched: &mut BTreeSet<String>) -> Vec<Report> {
    let reports = take_thread_reports();
    for report in &reports {
        assert_eq!(report.bank_conflicts(), 0, "{report}");
        assert_eq!(report.atomics, 0, "{report}");
        launched.insert(report.kernel.clone());
    }
    reports
}

/// All inputs are read, and little of them twice; the outputs are written once, in whole sectors.
fn judge(report: &Report, inputs: usize, outputs: usize, beside: f64) {
    let (inputs, outputs) = (inputs as u64, outputs as u64);
    let (loads, stores) = (&report.global_loads, &report.global_stores);
    assert_eq!(loads.unique_bytes, inputs, "{report}");
    let most = (1.0 + beside) * inputs as f64;
    assert!((SECTOR * loads.sectors) as f64 <= most, "{report}");
    assert_eq!(stores.unique_bytes, outputs, "{report}");
    assert_eq!(stores.bytes, outputs, "{report}");
    assert_eq!(SECTOR * stores.sectors, outputs, "{report}");
}

fn check<T: Number>(case: Case, forward: f64, backward: f64, launched: &mut BTreeSet<String>) {
    let element = size_of::<T>();
    let signal = element * DIM * SEQLEN;
    let filter = element * DIM * (case.width + 1);
    check_forward::<T, T>(case);
    for report in reports(launched) {
        judge(&report, signal + filter, signal, forward);
    }

    // without the gradients of states, which are few and wherever their strides are
    let stream = device().stream();
    let mut problem = Problem::<T, T>::new(case, &stream);
    let tensors = Backward {
        x: problem.x.view(),
        weight: problem.weight.view(),
        bias: Some(problem.bias.view()),
        initial_states: None,
        cu_seqlens: None,
        dout: problem.dout.view(),
        dfinal_states: None,
        dx: Some(problem.dx.view_mut()),
        dweight: Some(problem.dweight.view_mut()),
        dbias: Some(problem.dbias.view_mut()),
        dinitial_states: None,
    };
    let mut workspace = Workspace::new(&stream);
    let op = &device().causal_conv1d;
    let partial = op.backward_workspace_bytes(&tensors).unwrap();
    workspace.reserve(partial).unwrap();
    let queued = op.backward(&stream, case.config(), tensors, &mut workspace);
    queued.unwrap();
    let reports = reports(launched);
    if let [gradients, sum] = &reports[..] {
        judge(gradients, 2 * signal + filter, signal + partial, backward);
        assert_eq!(sum.global_loads.unique_bytes, partial as u64, "{sum}");
        assert_eq!(SECTOR * sum.global_loads.sectors, partial as u64, "{sum}");
        assert_eq!(sum.global_stores.bytes, filter as u64, "{sum}");
    } else {
        assert_eq!(device().driver, Driver::Cuda, "{} launches", reports.len());
    }
}

/// A step reads and writes its states once, in whole sectors; weights stay in the cache.
fn update<T: Number>(launched: &mut BTreeSet<String>) {
    let stream = device().stream();
    let (batch, dim, width) = (3, 512, 4);
    let upload = |shape: [usize; 2]| {
        let data = normal::<T>(1, shape[0] * shape[1], 1.0);
        Tensor::from_host(&stream, &data, shape).unwrap()
    };
    let (x, weight) = (upload([batch, dim]), upload([dim, width]));
    let mut conv_state = Tensor::<T, 3>::zeros(&stream, [batch, dim, width - 1]).unwrap();
    let mut out = Tensor::<T, 2>::zeros(&stream, [batch, dim]).unwrap();
    let tensors = Update {
        x: x.view(),
        conv_state: conv_state.view_mut(),
        weight: weight.view(),
        bias: None,
        conv_state_indices: None,
        out: out.view_mut(),
    };
    let op = &device().causal_conv1d;
    op.update(&stream, Config::default(), tensors).unwrap();
    let (row, state) = (size_of::<T>() * batch * dim, width - 1);
    for report in reports(launched) {
        let inputs = row * (1 + state) + size_of::<T>() * dim * width;
        assert_eq!(report.global_loads.unique_bytes, inputs as u64, "{report}");
        let outputs = (row * (1 + state)) as u64;
        assert_eq!(report.global_stores.bytes, outputs, "{report}");
        assert_eq!(SECTOR * report.global_stores.sectors, outputs, "{report}");
    }
}
