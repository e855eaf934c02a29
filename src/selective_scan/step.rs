//! One step of a scan, with a state that is kept between calls.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::problem::{Check, number_of};
use super::tensors::{Numbers, Step, StepConfig, Weight};
use super::{SelectiveScan, read_weight};
use crate::abi::Dtype;
use crate::abi::selective_scan::{Heads, SMALL_THREADS, StepParams};
use crate::error::{Error, Result};
use crate::launch::Launch;
use crate::tensor::{Float, Layout, TensorRef};

const CHECK: Check = Check {
    op: "selective_scan::step",
};

/// States that a lane takes at a time.
const PIECE: usize = 4;

/// The most lanes that share a channel: a warp.
const MAX_LANES: usize = 32;

/// The most channels, heads and groups: indices of the kernel.
const MAX_SIZE: usize = 1 << 30;

impl SelectiveScan {
    /// Queues one step on `stream`: what [`SelectiveScan::forward`] does for a sequence of one step whose
    /// initial state is `state`, which the last state replaces.
    ///
    /// Needs no workspace. States are read and written 16 bytes at a time where they lie contiguously, at
    /// multiples of 16 bytes.
    ///
    /// # Errors
    /// Shapes or options that do not fit, see [`Error`]; nothing is queued then.
    pub fn step<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: StepConfig,
        mut tensors: Step<'_, T>,
    ) -> Result<()> {
        let mut params = describe(config, &tensors)?;
        let Step {
            state,
            x,
            dt,
            a,
            b,
            c,
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
        launch.same_context("the operation", &self.ctx)?;
        let rows = usize::try_from(params.rows).unwrap_or(0); // a product of sizes
        if rows == 0 {
            return launch.check();
        }
        let kernel = &self.step[usize::from(config.numbers == Numbers::Complex)];
        let threads = rows * lanes(a.shape()[2]);
        // SAFETY: `describe` checked that the tensors have the sizes and strides that the parameters tell
        // the kernel, which accesses no index beyond them; `at` marked as aligned what is.
        unsafe { launch.run(kernel, [threads.div_ceil(SMALL_THREADS), 1, 1], &params) }
    }
}

/// The parameters of a call, without addresses and as if these were aligned.
fn describe<T: Float>(config: StepConfig, tensors: &Step<'_, T>) -> Result<StepParams> {
    let shape @ [batch, heads, channels] = tensors.x.shape();
    let [_, _, states] = tensors.a.shape();
    CHECK.state_size(config.numbers, states)?;
    for (what, size) in [("heads", heads), ("headdim", channels)] {
        if size > MAX_SIZE {
            let found = size.to_string();
            return Err(CHECK.shape(what, &format!("at most {MAX_SIZE}"), &found));
        }
    }
    let groups = tensors.b.shape()[1];
    if heads > 0 && (groups == 0 || heads % groups != 0) {
        let expected = format!("a divisor of {heads} heads as groups");
        return Err(CHECK.shape("B", &expected, &format!("{groups} groups")));
    }
    let (dt_min, dt_max) = config.dt_limit;
    // also false for a NaN
    if !(dt_min <= dt_max) {
        return Err(Error::Argument {
            op: CHECK.op,
            argument: "dt_limit",
            expected: "a lower limit and one that is not below it".into(),
            found: format!("{:?}", config.dt_limit),
        });
    }
    let row = |name, tensor: &TensorRef<'_, T, 3>| {
        of_axes(name, tensor.layout(), shape, [0, 1, 2], T::DTYPE)
    };
    let coefficient = |name, tensor: &TensorRef<'_, T, 3>| {
        let sizes = [batch, groups, states];
        of_axes(name, tensor.layout(), sizes, [0, 1, 3], T::DTYPE)
    };
    let weight = |name, weight: &Option<Weight<'_, T, 2>>| {
        let (layout, dtype) = match weight {
            Some(Weight::F32(tensor)) => (tensor.layout(), Dtype::F32),
            Some(Weight::Same(tensor)) => (tensor.layout(), T::DTYPE),
            None => return Ok(Heads::default()),
        };
        of_axes(name, layout, [heads, channels], [1, 2], dtype)
    };
    let out = tensors.out.layout();
    Ok(StepParams {
        state: of_axes(
            "state",
            tensors.state.layout(),
            [batch, heads, channels, states],
            [0, 1, 2, 3],
            Dtype::F32,
        )?,
        x: row("x", &tensors.x)?,
        dt: row("dt", &tensors.dt)?,
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
            Some(z) => row("z", z)?,
            None => Heads::default(),
        },
        out: of_axes("out", out, shape, [0, 1, 2], T::DTYPE)?,
        // elements of a tensor, and sizes that are checked above
        rows: (batch * heads * channels) as i64,
        heads: heads.max(1) as i32,
        channels: channels.max(1) as i32,
        heads_of_group: (heads / groups.max(1)).max(1) as i32,
        states: states as i32,
        lanes: lanes(states) as i32,
        softplus: config.dt_softplus.into(),
        dt_min,
        dt_max,
    })
}

/// Lanes that share a channel: enough for four states each.
fn lanes(states: usize) -> usize {
    states.div_ceil(PIECE).next_power_of_two().min(MAX_LANES)
}

/// A tensor whose axes are these of batch, head, channel and state.
fn of_axes<const N: usize>(
    name: &'static str,
    layout: Layout<N>,
    sizes: [usize; N],
    axes: [usize; N],
    dtype: Dtype,
) -> Result<Heads> {
    CHECK.sizes(name, sizes, layout.shape)?;
    let mut strides = [0; 4];
    for (axis, &of) in axes.iter().enumerate() {
        strides[of] = CHECK.stride(name, &layout, axis)?;
    }
    let [batch_stride, head_stride, channel_stride, state_stride] = strides;
    let whole = [batch_stride, head_stride, channel_stride];
    let whole = whole.iter().all(|stride| stride % PIECE as i64 == 0);
    Ok(Heads {
        at: 0,
        batch_stride,
        head_stride,
        channel_stride,
        state_stride,
        vector: (whole && state_stride == 1).into(),
        dtype: number_of(dtype),
    })
}

/// The tensor at this address.
fn at(tensor: Heads, address: u64, dtype: Dtype) -> Heads {
    let piece = (PIECE * dtype.bytes()) as u64;
    Heads {
        at: address,
        vector: tensor.vector & i32::from(address.is_multiple_of(piece)),
        ..tensor
    }
}
