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

fn layout<const N: usize>(shape: [usize; N]) -> Layout<N> {
    Layout::contiguous(shape).unwrap()
}

fn layouts(shape: [usize; 3]) -> Layouts {
    let dim = layout([shape[2]]);
    Layouts {
        dtype: Dtype::F16,
        k: layout(shape),
        v: layout(shape),
        decay: dim,
        bonus: dim,
        initial_state: None,
        cu_seqlens: None,
    }
}

fn problem(shape: [usize; 3], segments: Option<usize>) -> Problem {
    Problem::new("rwkv4::forward", Config { segments }, &layouts(shape)).unwrap()
}

#[test]
fn few_channels_are_cut_and_many_are_not() {
    let segments = |shape| Plan::forward(&problem(shape, None), &DEVICE).segments();
    assert_eq!(segments([64, 1024, 4096]), 1);
    assert_eq!(
        segments([1, 40, 768]),
        1,
        "as many steps as a cut would cost"
    );
    assert!(segments([1, 4096, 768]) >= 8);
    assert!(segments([1, 1 << 20, 64]) >= 32);
    // each segment has a few groups of steps
    assert!(segments([1, 128, 64]) <= 4);
}

#[test]
fn the_workspace_is_counted() {
    let one = problem([2, 20, 100], Some(1));
    assert_eq!(Plan::forward(&one, &DEVICE).workspace_bytes(), 0);
    let cut = problem([2, 20, 100], Some(3));
    let plan = Plan::forward(&cut, &DEVICE);
    assert_eq!(plan.workspace_bytes(), 9728); // 2 * 3 * 100 averages of 16 bytes, to a multiple of 256
    assert_eq!(
        plan.to_string(),
        "2 blocks of 128 channels x 3 segments, 9728 bytes of workspace"
    );
    // two whole groups of each row, and a slot for each segment
    let plan = Plan::backward(&cut, &DEVICE);
    assert_eq!(plan.parts.kept, 16_128); // 10 * 1600
    assert_eq!(plan.parts.ends, 9728);
    assert_eq!(plan.parts.turns, 7424);
    assert_eq!(plan.parts.sums, 4864);
}

#[test]
fn sizes_beyond_the_kernels_are_refused() {
    let say = |layouts: &Layouts, segments| {
        let problem = Problem::new("rwkv4::forward", Config { segments }, layouts);
        problem.unwrap_err().to_string()
    };
    assert_eq!(
        say(&layouts([1, (1 << 24) + 1, 1]), None),
        "rwkv4::forward: k has 16777217 steps, expected at most 16777216 steps"
    );
    assert_eq!(
        say(&layouts([1, 1, (1 << 30) + 1]), None),
        "rwkv4::forward: k has 1073741825 channels, expected at most 1073741824 channels"
    );
    for segments in [0, 65] {
        assert_eq!(
            say(&layouts([1, 1, 1]), Some(segments)),
            format!("rwkv4::forward: segments is {segments}, expected 1 to 64")
        );
    }
}
