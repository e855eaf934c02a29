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

/// Of sizes `[batch, seqlen, heads, dk]` and so many sequences, if they are packed.
fn layouts(shape: [usize; 4], sequences: Option<usize>) -> Layouts {
    let layout = Layout::contiguous(shape).unwrap();
    Layouts {
        dtype: Dtype::BF16,
        r: layout,
        decay: layout,
        k: layout,
        v: layout,
        a: layout,
        b: layout,
        initial_state: None,
        cu_seqlens: sequences.map(|count| Layout::contiguous([count + 1]).unwrap()),
    }
}

fn problem(shape: [usize; 4], sequences: Option<usize>) -> Problem {
    let layouts = layouts(shape, sequences);
    Problem::new("rwkv7::forward", Config::default(), &layouts).unwrap()
}

#[test]
fn few_heads_are_cut_and_many_are_not() {
    let slices = |shape| Plan::forward(&problem(shape, None), &DEVICE).slices();
    assert_eq!(slices([1, 100, 32, 64]), 4, "128 blocks");
    assert_eq!(slices([1, 100, 40, 64]), 1);
    assert_eq!(slices([8, 100, 32, 64]), 1);
}

#[test]
fn the_workspace_is_counted() {
    let plan = Plan::forward(&problem([2, 100, 3, 64], None), &DEVICE);
    assert_eq!(
        plan.to_string(),
        "6 heads in 4 slices of 16 channels, 0 bytes of workspace"
    );
    let plan = Plan::backward(&problem([2, 100, 3, 60], None));
    assert_eq!(plan.lookups, 144_128); // 2 * 100 * 3 * 60 floats, to a multiple of 256 bytes
    // a whole span of each sequence, and one more
    assert_eq!(plan.workspace_bytes() - plan.lookups, 4 * 3 * 64 * 64 * 4);
    let plan = Plan::backward(&problem([1, 130, 1, 32], Some(5)));
    assert_eq!(plan.workspace_bytes() - plan.lookups, (2 + 5) * 32 * 32 * 4);
}

#[test]
fn sizes_beyond_the_kernels_are_refused() {
    let say = |shape, slices| {
        let problem = Problem::new("rwkv7::forward", Config { slices }, &layouts(shape, None));
        problem.unwrap_err().to_string()
    };
    assert_eq!(
        say([1, 1, 1, 129], None),
        "rwkv7::forward: no kernel for dk 129; there is each from 1 to 128"
    );
    assert_eq!(
        say([1, (1 << 30) + 1, 1, 1], None),
        "rwkv7::forward: r has 1073741825 steps, expected at most 1073741824 steps"
    );
    assert_eq!(
        say([1, 1, 1, 1], Some(2)),
        "rwkv7::forward: slices is 2, expected 1 or 4"
    );
}
