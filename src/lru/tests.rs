//! Plans, without a device.

use super::Config;
use super::plan::Plan;
use super::problem::{Layouts, Problem};
use crate::abi::Dtype;
use crate::driver::Device;
use crate::tensor::Layout;

const DEVICE: Device = Device {
    capability: 90,
    shared_bytes: 227 << 10,
    shared_bytes_of_all: 228 << 10,
    multiprocessors: 132,
};

fn problem(batch: usize, seqlen: usize, states: usize, segments: Option<usize>) -> Problem {
    let layouts = Layouts {
        dtype: Dtype::F32,
        x: Layout::contiguous([batch, seqlen, states, 2]).unwrap(),
        a: Layout::contiguous([states, 2]).unwrap(),
        gamma: None,
        initial_state: None,
        cu_seqlens: None,
    };
    Problem::new("lru::forward", Config { segments }, &layouts).unwrap()
}

#[test]
fn few_states_are_cut_and_many_are_not() {
    let segments = |batch, seqlen, states| {
        let problem = problem(batch, seqlen, states, None);
        Plan::forward(&problem, &DEVICE).segments()
    };
    assert_eq!(segments(256, 1024, 1024), 1);
    assert!(segments(1, 16_384, 256) >= 8);
}

#[test]
fn the_workspace_is_counted() {
    let cut = problem(2, 20, 100, Some(3));
    let plan = Plan::forward(&cut, &DEVICE);
    assert_eq!(plan.workspace_bytes(), 9728); // 2 * 3 * 100 times two numbers of 8 bytes, to a multiple of 256
    assert_eq!(
        plan.to_string(),
        "2 blocks of 128 states x 3 segments, 9728 bytes of workspace"
    );
    // two whole groups of each row, and a slot for each segment
    let plan = Plan::backward(&cut, &DEVICE);
    assert_eq!(plan.parts.kept, 8192); // 10 * 800
    assert_eq!(plan.parts.turns, 9728);
    assert_eq!(plan.parts.sums, 9728);
}
