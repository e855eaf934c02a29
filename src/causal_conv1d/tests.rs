//! Tests of the pure steps: tensors' layouts to problems, and problems to [`Plan`].

use super::plan::{self, Plan};
use super::problem::{Backward, Forward, Gradients, Inputs, Update};
use super::{Activation, Config};
use crate::abi::Dtype::{BF16, F16, F32, I32};
use crate::abi::causal_conv1d::{Axis, CONVOLVE, Filter, Signal, State};
use crate::driver::Device;
use crate::error::{Error, Result};
use crate::tensor::Layout;

const A100: Device = Device {
    capability: 80,
    shared_bytes: 163 << 10,
    shared_bytes_of_all: 164 << 10,
    multiprocessors: 108,
};

const SILU: Config = Config {
    activation: Activation::Silu,
};

fn contiguous<const N: usize>(shape: [usize; N]) -> Layout<N> {
    Layout::contiguous(shape).unwrap()
}

/// A tensor of `[batch, seqlen, dim]` in memory.
fn channels_last([batch, dim, seqlen]: [usize; 3]) -> Layout<3> {
    contiguous([batch, seqlen, dim]).transposed()
}

/// Contiguous tensors, all of them.
fn inputs(x: Layout<3>, width: usize) -> Inputs {
    let [batch, dim, _] = x.shape;
    Inputs {
        x,
        weight: contiguous([dim, width]),
        bias: Some(contiguous([dim])),
        initial_states: Some(contiguous([batch, dim, width - 1])),
        cu_seqlens: None,
    }
}

fn forward(inputs: &Inputs, out: &Layout<3>) -> Result<Forward> {
    Forward::new((F16, F32), SILU, inputs, out, None)
}

/// A backward problem with all gradients.
fn backward(x: Layout<3>, width: usize) -> Backward {
    let [batch, dim, _] = x.shape;
    let states = contiguous([batch, dim, width - 1]);
    let gradients = Gradients {
        dout: x,
        dfinal_states: Some(states),
        dx: Some(x),
        dweight: Some(contiguous([dim, width])),
        dbias: Some(contiguous([dim])),
        dinitial_states: Some(states),
    };
    Backward::new((F16, F32), SILU, &inputs(x, width), &gradients).unwrap()
}

#[test]
fn a_problem_holds_sizes_and_strides() {
    let shape = [2, 48, 100];
    let x = contiguous(shape);
    let problem = forward(&inputs(x, 4), &x).unwrap();
    let convolution = &problem.convolution;
    assert_eq!((convolution.dtype, convolution.axis), (F16, Axis::Seqlen));
    let sizes = (convolution.batch, convolution.dim, convolution.seqlen);
    assert_eq!((sizes, convolution.width), ((2, 48, 100), 4));
    assert_eq!((convolution.sequences, convolution.packed), (2, false));
    assert!(convolution.silu);
    // rows of 100 elements are 200 bytes
    let signal = Signal {
        at: 0,
        batch_stride: 4800,
        line_stride: 100,
        vector: 0,
    };
    assert_eq!((convolution.x, problem.out), (signal, signal));
    let filter = Filter {
        weight: 0,
        bias: 0,
        weight_channel_stride: 4,
        weight_tap_stride: 1,
        bias_stride: 1,
        dtype: 2,
        width: 4,
    };
    assert_eq!(convolution.filter, filter);
    let state = State {
        at: 0,
        sequence_stride: 144,
        channel_stride: 3,
        step_stride: 1,
    };
    assert_eq!(convolution.initial_states, state);
    assert_eq!(problem.final_states, State::default());

    let x = channels_last(shape);
    let problem = forward(&inputs(x, 4), &x).unwrap();
    assert_eq!(problem.convolution.axis, Axis::Dim);
    let signal = Signal {
        at: 0,
        batch_stride: 4800,
        line_stride: 48,
        vector: 1,
    };
    assert_eq!((problem.convolution.x, problem.out), (signal, signal));
}

#[test]
fn addresses_decide_what_is_aligned() {
    let x = channels_last([1, 48, 100]);
    let problem = forward(&inputs(x, 4), &x).unwrap();
    for (address, vector) in [(4096, 1), (4100, 0), (4104, 0), (16, 1)] {
        let signal = problem.convolution.x.at(address);
        assert_eq!((signal.at, signal.vector), (address, vector));
    }
    let odd = channels_last([1, 49, 100]);
    let problem = forward(&inputs(odd, 4), &odd).unwrap();
    assert_eq!(problem.convolution.x.at(4096).vector, 0);
}

/// A tensor of one step or one channel lies both ways: along the longer axis, and aligned if one is.
#[test]
fn tensors_of_one_line_are_read_along_it() {
    let axis = |shape| {
        let x = contiguous(shape);
        forward(&inputs(x, 4), &x).unwrap().convolution.axis
    };
    assert_eq!(axis([2, 48, 1]), Axis::Dim);
    assert_eq!(axis([2, 1, 48]), Axis::Seqlen);
    assert_eq!(axis([1, 47, 1]), Axis::Dim);
    assert_eq!(axis([1, 1, 47]), Axis::Seqlen);
    assert_eq!(axis([2, 47, 1]), Axis::Dim);
    assert_eq!(axis([3, 2, 2]), Axis::Seqlen);
}

#[test]
fn tensors_have_to_lie_alike() {
    let shape = [2, 48, 100];
    let (by_step, by_channel) = (contiguous(shape), channels_last(shape));
    let error = forward(&inputs(by_step, 4), &by_channel).unwrap_err();
    let text = "causal_conv1d::forward: out has shape [2, 48, 100] with strides [4800, 1, 48], \
                expected a stride of 1 along seqlen";
    assert_eq!(error.to_string(), text);
    let mut neither = by_step;
    neither.strides = [20_000, 200, 2];
    let error = forward(&inputs(neither, 4), &by_channel).unwrap_err();
    let words = "x has shape [2, 48, 100] with strides [20000, 200, 2], expected a stride of 1 \
                 along seqlen or dim";
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn packed_sequences_share_one_row() {
    let x = contiguous([1, 48, 100]);
    let packed = Inputs {
        initial_states: Some(contiguous([7, 48, 3])),
        cu_seqlens: Some(contiguous([8])),
        ..inputs(x, 4)
    };
    let convolution = forward(&packed, &x).unwrap().convolution;
    assert_eq!((convolution.sequences, convolution.packed), (7, true));
    let wrong = Inputs {
        initial_states: Some(contiguous([8, 48, 3])),
        ..packed
    };
    let error = forward(&wrong, &x).unwrap_err();
    assert!(matches!(
        error,
        Error::Shape {
            tensor: "initial_states",
            ..
        }
    ));
}

#[test]
fn sizes_that_do_not_fit_the_kernel_are_refused() {
    let huge = |shape: [usize; 3]| {
        let x = Layout {
            shape,
            strides: [0, 0, 1],
        };
        let inputs = Inputs {
            x,
            weight: Layout {
                shape: [shape[1], 4],
                strides: [0, 0],
            },
            bias: None,
            initial_states: None,
            cu_seqlens: None,
        };
        forward(&inputs, &x)
    };
    let limit = 1 << 30;
    assert!(huge([1, 1, limit]).is_ok());
    for shape in [[limit + 1, 1, 1], [1, limit + 1, 1], [1, 1, limit + 1]] {
        let error = huge(shape).unwrap_err().to_string();
        assert!(
            error.contains("at most 1073741824 along each axis"),
            "{error}"
        );
    }
    // every axis fits, but not the number of tiles
    let problem = huge([limit, 1, 1 << 20]).unwrap();
    let error = Plan::forward(&problem, CONVOLVE).unwrap_err().to_string();
    assert!(error.contains("room for 2147483647"), "{error}");
}

#[test]
fn the_first_row_that_is_wide_enough_is_used() {
    for (width, of_row) in [(2, 4), (3, 4), (4, 4), (5, 8), (8, 8)] {
        let x = channels_last([1, 48, 100]);
        let problem = forward(&inputs(x, width), &x).unwrap();
        let plan = Plan::forward(&problem, CONVOLVE).unwrap();
        let row = CONVOLVE[plan.row];
        assert_eq!((row.dtype, row.axis, row.width), (F16, Axis::Dim, of_row));
    }
    let x = channels_last([1, 48, 100]);
    let mut problem = forward(&inputs(x, 4), &x).unwrap();
    problem.convolution.dtype = I32;
    assert!(Plan::forward(&problem, CONVOLVE).is_err());
}

#[test]
fn a_forward_plan_has_a_block_for_each_tile() {
    let plan = |x: Layout<3>| {
        let problem = forward(&inputs(x, 4), &x).unwrap();
        Plan::forward(&problem, CONVOLVE).unwrap()
    };
    // 64 channels by 256 steps
    let along_dim = plan(channels_last([3, 130, 600]));
    assert_eq!((along_dim.channel_tiles, along_dim.step_tiles), (3, 3));
    assert_eq!((along_dim.tiles, along_dim.grid()), (9, [27, 1, 1]));
    // 16 channels by 1024 steps
    let along_seqlen = plan(contiguous([3, 130, 600]));
    assert_eq!(along_seqlen.tile.line_chunks, 7);
    assert_eq!(
        (along_seqlen.channel_tiles, along_seqlen.step_tiles),
        (9, 1)
    );
    assert_eq!(along_seqlen.grid(), [27, 1, 1]);
    // final states of no steps
    assert_eq!(plan(contiguous([3, 130, 0])).tiles, 3);
    // nothing at all
    assert_eq!(plan(contiguous([0, 130, 600])).tiles, 0);
    assert_eq!(plan(contiguous([3, 0, 600])).tiles, 0);
}

#[test]
fn sums_are_spread_over_slots_that_fill_the_device() {
    let plan = |x: Layout<3>| {
        let problem = backward(x, 4);
        let plan = Plan::backward(&problem, CONVOLVE, &A100).unwrap();
        let bytes = plan.workspace_bytes(&problem);
        (plan.tiles, plan.slot_tiles, plan.slots(), bytes)
    };
    // fewer tiles than blocks that the device wants: a slot each, of 5 numbers for each channel
    let bytes = 4 * 8 * 5 * 64;
    assert_eq!(plan(channels_last([1, 64, 1024])), (8, 1, 8, bytes));
    // 864 blocks over 32 tiles of channels: 27 slots
    let bytes = 4 * 27 * 5 * 2048;
    assert_eq!(
        plan(channels_last([8, 2048, 4096])),
        (256, 10, 26, bytes / 27 * 26)
    );
    // sums of nothing take no workspace
    assert_eq!(plan(channels_last([0, 64, 64])), (0, 1, 0, 0));
}

#[test]
fn without_sums_every_tile_has_a_block() {
    let x = channels_last([8, 2048, 4096]);
    let gradients = Gradients {
        dout: x,
        dfinal_states: None,
        dx: Some(x),
        dweight: None,
        dbias: None,
        dinitial_states: None,
    };
    let problem = Backward::new((F16, F32), SILU, &inputs(x, 4), &gradients).unwrap();
    let plan = Plan::backward(&problem, CONVOLVE, &A100).unwrap();
    assert_eq!((plan.slots(), plan.workspace_bytes(&problem)), (256, 0));
    assert_eq!(plan.grid(), [32 * 256, 1, 1]);
}

#[test]
fn parameters_hold_what_the_kernels_need() {
    let x = channels_last([8, 2048, 4096]);
    let problem = backward(x, 3);
    let plan = Plan::backward(&problem, CONVOLVE, &A100).unwrap();
    let (grid, sum) = plan.sum(&problem, 512);
    assert_eq!(grid, [64, 4, 1]);
    assert_eq!((sum.partial, sum.slots, sum.dim), (512, 26, 2048));
    assert_eq!(
        (sum.gradient.width, sum.gradient.weight_channel_stride),
        (3, 3)
    );
    let params = plan.backward_params(&problem, 0, 512);
    assert_eq!((params.tiles, params.slot_tiles), (256, 10));
    assert_eq!((params.channel_tiles, params.step_tiles), (32, 32));
    assert_eq!((params.packing.sequences, params.packing.seqlen), (1, 4096));
    assert_eq!((params.dim, params.silu, params.partial), (2048, 1, 512));

    let out = contiguous([1, 48, 100]);
    let packed = Inputs {
        initial_states: None,
        cu_seqlens: Some(contiguous([8])),
        ..inputs(out, 4)
    };
    let problem = forward(&packed, &out).unwrap();
    let plan = Plan::forward(&problem, CONVOLVE).unwrap();
    let params = plan.forward_params(&problem, 1024);
    assert_eq!(
        (params.packing.cu_seqlens, params.packing.sequences),
        (1024, 7)
    );
    assert_eq!((params.line_chunks, params.silu), (4, 1));
}

#[test]
fn a_step_has_a_block_for_256_channels() {
    let (x, state) = (contiguous([5, 600]), contiguous([5, 600, 3]));
    let weight = contiguous([600, 4]);
    let problem = Update::new((BF16, BF16), SILU, [&x, &x], &state, (&weight, None), None);
    let problem = problem.unwrap();
    assert_eq!(problem.conv_state.channel_stride, 3);
    let (grid, params) = plan::update(&problem, 0);
    assert_eq!(grid, [15, 1, 1]);
    assert_eq!(
        (params.dim, params.entries, params.channel_tiles),
        (600, 5, 3)
    );
    assert_eq!(
        (params.x.sequence_stride, params.x.channel_stride),
        (600, 1)
    );
    assert_eq!(params.filter.dtype, 1);

    // another number of entries needs indices
    let entries = contiguous([9, 600, 3]);
    let filter = (&weight, None);
    let error = Update::new((BF16, BF16), SILU, [&x, &x], &entries, filter, None).unwrap_err();
    let text =
        "causal_conv1d::update: conv_state has shape [9, 600, 3], expected shape [5, 600, 3]";
    assert_eq!(error.to_string(), text);
    let indices = contiguous([5]);
    let indexed = Update::new(
        (BF16, BF16),
        SILU,
        [&x, &x],
        &entries,
        filter,
        Some(&indices),
    );
    assert_eq!(indexed.unwrap().entries, 9);
}
