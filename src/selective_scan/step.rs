//! One step of a scan, with a state that is kept between calls.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::problem::state_size;
use super::tensors::{Numbers, Step, StepConfig, StepConvolution, Weight};
use super::{SelectiveScan, read_weight};
use crate::abi::Dtype;
use crate::abi::causal_conv1d::WIDTHS;
use crate::abi::selective_scan::{self as table, Heads, STEP_THREADS, StepParams};
use crate::causal_conv1d::Activation;
use crate::check::Check;
use crate::error::Result;
use crate::launch::Launch;
use crate::tensor::{Float, Layout, TensorRef};

const CHECK: Check = Check {
    op: "selective_scan::step",
};

/// States that a lane takes at a time.
const PIECE: usize = 4;

/// The most lanes that share a channel: a warp.
const MAX_LANES: usize = 32;

/// Blocks that give a multiprocessor enough to do while others wait for memory.
const BLOCKS_OF_MULTIPROCESSOR: usize = 2;

/// The largest size of an axis: indices of the kernel.
const MAX_SIZE: usize = 1 << 30;

impl SelectiveScan {
    /// Queues one step on `stream`: what [`SelectiveScan::forward`] does for a sequence of one step whose
    /// initial state is `state`, which the last state replaces.
    ///
    /// Needs no workspace. States are read and written 16 bytes at a time where they lie contiguously, at
    /// multiples of 16 bytes.
    ///
    /// # Errors
    /// Shapes or options that do not fit, see [`Error`](crate::Error); nothing is queued then.
    pub fn step<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: StepConfig,
        mut tensors: Step<'_, T>,
    ) -> Result<()> {
        let mut params = describe(config, &tensors, self.device.multiprocessors)?;
        let blocks = blocks(&params, tensors.x.shape()[0]);
        let Step {
            state,
            state_batch_indices,
            x,
            dt,
            a,
            b,
            c,
            convolution,
            d,
            z,
            dt_bias,
            out,
        } = &mut tensors;
        let mut launch = Launch::new(CHECK.op, stream);
        let element = size_of::<T>() as u64;
        params.state = at(params.state, launch.write("state", state, 4)?, Dtype::F32);
        params.out.at = launch.write("out", out, element)?;
        params.x.at = launch.read("x", x, element)?;
        params.dt.at = launch.read("dt", dt, element)?;
        params.a = at(params.a, launch.read("A", a, 4)?, Dtype::F32);
        params.b = at(params.b, launch.read("B", b, element)?, T::DTYPE);
        params.c = at(params.c, launch.read("C", c, element)?, T::DTYPE);
        params.skip.at = read_weight(&mut launch, "D", d)?;
        params.dt_bias.at = read_weight(&mut launch, "dt_bias", dt_bias)?;
        if let Some(z) = z {
            params.z.at = launch.read("z", z, element)?;
        }
        if let Some(indices) = state_batch_indices {
            params.entries_of_rows = launch.read("state_batch_indices", indices, 4)?;
        }
        if let Some(StepConvolution {
            conv_state,
            cache_seqlens,
            weight,
            bias,
            activation: _,
        }) = convolution
        {
            let params = &mut params.convolution;
            params.ring = launch.write("conv_state", conv_state, element)?;
            params.steps = launch.read("cache_seqlens", cache_seqlens, 4)?;
            params.weight = match weight {
                Weight::F32(weight) => launch.read("weight", weight, 4)?,
                Weight::Same(weight) => launch.read("weight", weight, element)?,
            };
            params.bias = read_weight(&mut launch, "bias", bias)?;
        }
        launch.same_context("the operation", &self.ctx)?;
        if blocks == 0 {
            return launch.check();
        }
        let kernel = &self.step[usize::from(config.numbers == Numbers::Complex)];
        // SAFETY: `describe` checked that the tensors have the sizes and strides that the parameters tell
        // the kernel, which skips rows of no entry and accesses no index beyond them; `at` marked as
        // aligned what is.
        unsafe { launch.run(kernel, [blocks, 1, 1], &params) }
    }
}

/// The blocks of a call.
fn blocks(params: &StepParams, batch: usize) -> usize {
    // a number of blocks that does not fit is too many for any device
    [params.groups, params.group_tiles]
        .into_iter()
        .try_fold(batch, |product, size| product.checked_mul(size as usize))
        .unwrap_or(usize::MAX)
}

/// The parameters of a call, without addresses and as if these were aligned.
fn describe<T: Float>(
    config: StepConfig,
    tensors: &Step<'_, T>,
    multiprocessors: usize,
) -> Result<StepParams> {
    let shape @ [batch, heads, channels] = tensors.x.shape();
    let [_, _, states] = tensors.a.shape();
    state_size(CHECK, config.numbers, states)?;
    let entries = match &tensors.state_batch_indices {
        Some(indices) => {
            CHECK.sizes("state_batch_indices", [batch], indices.shape())?;
            CHECK.contiguous("state_batch_indices", &indices.layout())?;
            tensors.state.shape()[0]
        }
        None => batch,
    };
    let dim = heads.saturating_mul(channels);
    for (what, size) in [("state", entries), ("x", batch), ("x", dim)] {
        if size > MAX_SIZE {
            let expected = format!("a batch, and heads times headdim, of at most {MAX_SIZE}");
            return Err(CHECK.shape(what, expected, size.to_string()));
        }
    }
    let groups = tensors.b.shape()[1];
    if heads > 0 && (groups == 0 || heads % groups != 0) {
        let expected = format!("a divisor of {heads} heads as groups");
        return Err(CHECK.shape("B", expected, format!("{groups} groups")));
    }
    let (dt_min, dt_max) = config.dt_limit;
    if dt_min.is_nan() || dt_max.is_nan() || dt_min > dt_max {
        let expected = "a lower limit and one that is not below it";
        return Err(CHECK.argument("dt_limit", expected, format!("{:?}", config.dt_limit)));
    }
    let row = |name, layout| of_axes(name, layout, shape, [0, 1, 2], T::DTYPE);
    let coefficient = |name, tensor: &TensorRef<'_, T, 3>| {
        let sizes = [batch, groups, states];
        of_axes(name, tensor.layout(), sizes, [0, 1, 3], T::DTYPE)
    };
    let weight = |name, weight: &Option<Weight<'_, T, 2>>| match weight {
        Some(weight) => {
            let (layout, dtype) = weight.layout();
            of_axes(name, layout, [heads, channels], [1, 2], dtype)
        }
        None => Ok(Heads::default()),
    };
    let lane_bits = lane_bits(states);
    let heads_of_group = heads.checked_div(groups).unwrap_or(0);
    let group_channels = heads_of_group * channels;
    let tile = tile(lane_bits, batch * groups, group_channels, multiprocessors);
    let group_tiles = group_channels.div_ceil(tile);
    let convolution = match &tensors.convolution {
        Some(convolution) => {
            let channels = groups.saturating_mul(2 * states).saturating_add(dim);
            describe_convolution(convolution, batch, entries, channels)?
        }
        None => table::StepConvolution::default(),
    };
    Ok(StepParams {
        state: of_axes(
            "state",
            tensors.state.layout(),
            [entries, heads, channels, states],
            [0, 1, 2, 3],
            Dtype::F32,
        )?,
        x: row("x", tensors.x.layout())?,
        dt: row("dt", tensors.dt.layout())?,
        a: of_axes(
            "A",
            tensors.a.layout(),
            [heads, channels, states],
            [1, 2, 3],
            Dtype::F32,
        )?,
        b: coefficient("B", &tensors.b)?,
        c: coefficient("C", &tensors.c)?,
        skip: weight("D", &tensors.d)?,
        dt_bias: weight("dt_bias", &tensors.dt_bias)?,
        z: match &tensors.z {
            Some(z) => row("z", z.layout())?,
            None => Heads::default(),
        },
        out: row("out", tensors.out.layout())?,
        convolution,
        entries_of_rows: 0,
        // sizes that are checked above
        entries: entries as i32,
        groups: groups as i32,
        heads_of_group: heads_of_group as i32,
        channels: channels as i32,
        tile: tile as i32,
        group_tiles: group_tiles as i32,
        states: states as i32,
        lane_bits: lane_bits as i32,
        softplus: config.dt_softplus.into(),
        dt_min,
        dt_max,
    })
}

fn describe_convolution<T: Float>(
    convolution: &StepConvolution<'_, T>,
    batch: usize,
    entries: usize,
    channels: usize,
) -> Result<table::StepConvolution> {
    let StepConvolution {
        conv_state,
        cache_seqlens,
        weight,
        bias,
        activation,
    } = convolution;
    let (filter, weight_dtype) = weight.layout();
    let [_, width] = filter.shape;
    CHECK.sizes("weight", [channels, width], filter.shape)?;
    if !WIDTHS.contains(&width) {
        let available = format!("each width from {} to {}", WIDTHS.start(), WIDTHS.end());
        return Err(CHECK.unsupported(format!("a filter of width {width}"), available));
    }
    let ring = conv_state.layout();
    let [_, _, slots] = ring.shape;
    CHECK.sizes("conv_state", [entries, channels, slots], ring.shape)?;
    if !(width..=MAX_SIZE).contains(&slots) {
        let expected = format!("{width} slots, the filter's width, to {MAX_SIZE}");
        return Err(CHECK.shape("conv_state", expected, slots.to_string()));
    }
    CHECK.sizes("cache_seqlens", [batch], cache_seqlens.shape())?;
    CHECK.contiguous("cache_seqlens", &cache_seqlens.layout())?;
    let (bias_stride, bias_dtype) = match bias {
        Some(bias) => {
            let (layout, dtype) = bias.layout();
            CHECK.sizes("bias", [channels], layout.shape)?;
            (CHECK.stride("bias", &layout, 0)?, dtype)
        }
        None => (0, T::DTYPE),
    };
    Ok(table::StepConvolution {
        ring: 0,
        ring_entry_stride: CHECK.stride("conv_state", &ring, 0)?,
        ring_channel_stride: CHECK.stride("conv_state", &ring, 1)?,
        ring_slot_stride: CHECK.stride("conv_state", &ring, 2)?,
        weight: 0,
        weight_channel_stride: CHECK.stride("weight", &filter, 0)?,
        weight_tap_stride: CHECK.stride("weight", &filter, 1)?,
        bias: 0,
        bias_stride,
        steps: 0,
        weight_dtype: weight_dtype.number(),
        bias_dtype: bias_dtype.number(),
        slots: slots as i32,
        width: width as i32,
        silu: (*activation == Activation::Silu).into(),
    })
}

/// Channels of a block: as many as its lanes have room for at a time, or several times as many, so that
/// what is done once for each block, and by one thread for each channel, is a smaller share; but not so many
/// that multiprocessors are without work.
fn tile(lane_bits: u32, groups: usize, group_channels: usize, multiprocessors: usize) -> usize {
    let smallest = STEP_THREADS >> lane_bits;
    let blocks = |tile: usize| groups.saturating_mul(group_channels.div_ceil(tile));
    let doubled = std::iter::successors(Some(smallest), |tile| Some(2 * tile));
    doubled
        .take_while(|&tile| tile <= STEP_THREADS)
        .filter(|&tile| blocks(tile) >= BLOCKS_OF_MULTIPROCESSOR * multiprocessors)
        .last()
        .unwrap_or(smallest)
}

/// log2 of the lanes that share a channel: enough for four states each.
fn lane_bits(states: usize) -> u32 {
    let lanes = states.div_ceil(PIECE).next_power_of_two();
    lanes.min(MAX_LANES).trailing_zeros()
}

/// How four states lie, as the kernel's `PieceKind`.
const APART: i32 = 0;
const ALIGNED: i32 = 1;
const SAME: i32 = 2;

/// A tensor whose axes are these of batch, head, channel and state.
fn of_axes<const N: usize>(
    name: &'static str,
    layout: Layout<N>,
    sizes: [usize; N],
    axes: [usize; N],
    dtype: Dtype,
) -> Result<Heads> {
    CHECK.sizes(name, sizes, layout.shape)?;
    let mut several_states = false;
    let mut strides = [0; 4];
    for (axis, &of) in axes.iter().enumerate() {
        strides[of] = CHECK.stride(name, &layout, axis)?;
        several_states |= of == 3 && layout.shape[axis] > 1;
    }
    let [batch_stride, head_stride, channel_stride, state_stride] = strides;
    let whole = [batch_stride, head_stride, channel_stride];
    let whole = whole.iter().all(|stride| stride % PIECE as i64 == 0);
    let pieces = match state_stride {
        0 if several_states => SAME,
        1 if whole => ALIGNED,
        _ => APART,
    };
    Ok(Heads {
        at: 0,
        batch_stride,
        head_stride,
        channel_stride,
        state_stride,
        pieces,
        dtype: dtype.number(),
    })
}

/// The tensor at this address.
fn at(tensor: Heads, address: u64, dtype: Dtype) -> Heads {
    let piece = (PIECE * dtype.bytes()) as u64;
    let pieces = match tensor.pieces {
        ALIGNED if !address.is_multiple_of(piece) => APART,
        pieces => pieces,
    };
    Heads {
        at: address,
        pieces,
        ..tensor
    }
}
