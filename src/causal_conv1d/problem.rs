//! What a call asks for, once its tensors are known to agree: [`Forward`], [`Backward`], [`Update`]. Pure.

use super::{Activation, Config};
use crate::abi::Dtype;
use crate::abi::causal_conv1d::{Axis, Filter, Signal, State, WIDTHS};
use crate::check::Check;
use crate::error::Result;
use crate::tensor::Layout;

/// The largest size of an axis: the kernels add a tile to it in 32 bits.
const MAX_SIZE: usize = 1 << 30;

/// What the kernels copy at a time where alignment allows it.
const VECTOR_BYTES: usize = 16;

/// Types of the elements: those of x, and those of the weights.
pub(super) type Dtypes = (Dtype, Dtype);

/// Layouts of what every pass over sequences reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs {
    pub(super) x: Layout<3>,
    pub(super) weight: Layout<2>,
    pub(super) bias: Option<Layout<1>>,
    pub(super) initial_states: Option<Layout<3>>,
    pub(super) cu_seqlens: Option<Layout<1>>,
}

/// The same once checked; strides count elements and are 0 along axes of one element. All addresses
/// are still 0, and the tensors as aligned as their strides allow.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Convolution {
    pub(super) dtype: Dtype,
    pub(super) axis: Axis,
    pub(super) silu: bool,
    /// Rows of x.
    pub(super) batch: usize,
    pub(super) dim: usize,
    /// Steps of a row.
    pub(super) seqlen: usize,
    pub(super) width: usize,
    /// Sequences of all rows.
    pub(super) sequences: usize,
    /// Whether the sequences are packed in one row.
    pub(super) packed: bool,
    pub(super) x: Signal,
    pub(super) filter: Filter,
    pub(super) initial_states: State,
}

/// A checked call of forward.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Forward {
    pub(super) convolution: Convolution,
    pub(super) out: Signal,
    pub(super) final_states: State,
}

/// A checked call of backward.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Backward {
    pub(super) convolution: Convolution,
    pub(super) dout: Signal,
    pub(super) dfinal_states: State,
    pub(super) dx: Signal,
    pub(super) dinitial_states: State,
    /// Where dweight and dbias go.
    pub(super) gradient: Filter,
    /// Whether there is a dweight or a dbias.
    pub(super) sums: bool,
}

/// A checked call of update.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Update {
    pub(super) dtype: Dtype,
    pub(super) silu: bool,
    pub(super) batch: usize,
    pub(super) dim: usize,
    pub(super) entries: usize,
    pub(super) x: State,
    pub(super) out: State,
    pub(super) conv_state: State,
    pub(super) filter: Filter,
}

impl Forward {
    pub(super) fn new(
        dtypes: Dtypes,
        config: Config,
        inputs: &Inputs,
        out: &Layout<3>,
        final_states: Option<&Layout<3>>,
    ) -> Result<Self> {
        let check = Check {
            op: "causal_conv1d::forward",
        };
        let signals = [("x", Some(&inputs.x)), ("out", Some(out))];
        let convolution = convolution_of(check, dtypes, config, inputs, &signals)?;
        Ok(Self {
            out: signal_of(check, "out", out, &convolution)?,
            final_states: state_of(check, "final_states", final_states, &convolution)?,
            convolution,
        })
    }
}

/// Layouts of what backward reads and writes beside the inputs of forward.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gradients {
    pub(super) dout: Layout<3>,
    pub(super) dfinal_states: Option<Layout<3>>,
    pub(super) dx: Option<Layout<3>>,
    pub(super) dweight: Option<Layout<2>>,
    pub(super) dbias: Option<Layout<1>>,
    pub(super) dinitial_states: Option<Layout<3>>,
}

impl Backward {
    pub(super) fn new(
        dtypes: Dtypes,
        config: Config,
        inputs: &Inputs,
        gradients: &Gradients,
    ) -> Result<Self> {
        let check = Check {
            op: "causal_conv1d::backward",
        };
        let Gradients {
            dout,
            dfinal_states,
            dx,
            dweight,
            dbias,
            dinitial_states,
        } = gradients;
        let signals = [
            ("x", Some(&inputs.x)),
            ("dout", Some(dout)),
            ("dx", dx.as_ref()),
        ];
        let convolution = convolution_of(check, dtypes, config, inputs, &signals)?;
        let (dim, width) = (convolution.dim, convolution.width);
        let state =
            |name, layout: &Option<Layout<3>>| state_of(check, name, layout.as_ref(), &convolution);
        Ok(Self {
            dout: signal_of(check, "dout", dout, &convolution)?,
            dfinal_states: state("dfinal_states", dfinal_states)?,
            dx: match dx {
                Some(dx) => signal_of(check, "dx", dx, &convolution)?,
                None => Signal::default(),
            },
            dinitial_states: state("dinitial_states", dinitial_states)?,
            gradient: filter_of(
                check,
                ("dweight", dweight.as_ref()),
                ("dbias", dbias.as_ref()),
                [dim, width],
                dtypes.1,
            )?,
            sums: dweight.is_some() || dbias.is_some(),
            convolution,
        })
    }

    /// Whether there is anything to write, once the tensors have their addresses.
    pub(super) fn writes(&self) -> bool {
        self.sums || self.dx.at != 0 || self.dinitial_states.at != 0
    }
}

impl Update {
    pub(super) fn new(
        (dtype, weight_dtype): Dtypes,
        config: Config,
        [x, out]: [&Layout<2>; 2],
        conv_state: &Layout<3>,
        (weight, bias): (&Layout<2>, Option<&Layout<1>>),
        indices: Option<&Layout<1>>,
    ) -> Result<Self> {
        let check = Check {
            op: "causal_conv1d::update",
        };
        let ([batch, dim], [_, width]) = (x.shape, weight.shape);
        checked_width(check, width)?;
        let [entries, ..] = conv_state.shape;
        check.sizes("weight", [dim, width], weight.shape)?;
        check.sizes("out", [batch, dim], out.shape)?;
        match indices {
            Some(indices) => {
                check.sizes("conv_state", [entries, dim, width - 1], conv_state.shape)?;
                check.sizes("conv_state_indices", [batch], indices.shape)?;
                check.contiguous("conv_state_indices", indices)?;
            }
            None => check.sizes("conv_state", [batch, dim, width - 1], conv_state.shape)?,
        }
        for size in [batch, dim, entries] {
            checked_size(check, "x and conv_state", size)?;
        }
        let step = |tensor, layout: &Layout<2>| -> Result<State> {
            let [sequence_stride, channel_stride] = check.strides(tensor, layout)?;
            Ok(State {
                sequence_stride,
                channel_stride,
                ..State::default()
            })
        };
        Ok(Self {
            dtype,
            silu: config.activation == Activation::Silu,
            batch,
            dim,
            entries,
            x: step("x", x)?,
            out: step("out", out)?,
            conv_state: strides_of_state(check, "conv_state", conv_state)?,
            filter: filter_of(
                check,
                ("weight", Some(weight)),
                ("bias", bias),
                [dim, width],
                weight_dtype,
            )?,
        })
    }

    /// Whether there is no step at all.
    pub(super) fn is_empty(&self) -> bool {
        self.batch == 0 || self.dim == 0
    }
}

impl Convolution {
    /// Whether there is no sequence of any channel.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences == 0 || self.dim == 0
    }
}

impl Signal {
    /// The tensor at this address.
    pub(super) fn at(self, address: u64) -> Self {
        let aligned = address.is_multiple_of(VECTOR_BYTES as u64);
        Self {
            at: address,
            vector: (self.vector != 0 && aligned).into(),
            ..self
        }
    }
}

impl State {
    /// The tensor at this address.
    pub(super) fn at(self, address: u64) -> Self {
        Self {
            at: address,
            ..self
        }
    }
}

impl Filter {
    /// The tensors at these addresses.
    pub(super) fn at(self, weight: u64, bias: u64) -> Self {
        Self {
            weight,
            bias,
            ..self
        }
    }
}

/// Checks what all passes read; `signals` are the tensors that have to lie alike.
fn convolution_of(
    check: Check,
    (dtype, weight_dtype): Dtypes,
    config: Config,
    inputs: &Inputs,
    signals: &[(&'static str, Option<&Layout<3>>)],
) -> Result<Convolution> {
    let ([batch, dim, seqlen], [_, width]) = (inputs.x.shape, inputs.weight.shape);
    checked_width(check, width)?;
    for size in [batch, dim, seqlen] {
        checked_size(check, "x", size)?;
    }
    let cu_seqlens = inputs.cu_seqlens.as_ref();
    let alone = "a batch of 1, whose steps cu_seqlens divides";
    let sequences = check.sequences(("x", batch), cu_seqlens, alone)?;
    if let Some(cu_seqlens) = cu_seqlens {
        check.contiguous("cu_seqlens", cu_seqlens)?;
        checked_size(check, "cu_seqlens", cu_seqlens.shape[0])?;
    }
    for (tensor, layout) in signals {
        if let Some(layout) = layout {
            check.sizes(tensor, inputs.x.shape, layout.shape)?;
        }
    }
    let axis = shared_axis(check, dtype, inputs.x.shape, signals)?;
    let mut convolution = Convolution {
        dtype,
        axis,
        silu: config.activation == Activation::Silu,
        batch,
        dim,
        seqlen,
        width,
        sequences,
        packed: inputs.cu_seqlens.is_some(),
        x: Signal::default(),
        filter: filter_of(
            check,
            ("weight", Some(&inputs.weight)),
            ("bias", inputs.bias.as_ref()),
            [dim, width],
            weight_dtype,
        )?,
        initial_states: State::default(),
    };
    convolution.x = signal_of(check, "x", &inputs.x, &convolution)?;
    convolution.initial_states = state_of(
        check,
        "initial_states",
        inputs.initial_states.as_ref(),
        &convolution,
    )?;
    Ok(convolution)
}

/// The axis along which all of `signals` are contiguous.
fn shared_axis(
    check: Check,
    dtype: Dtype,
    [_, dim, seqlen]: [usize; 3],
    signals: &[(&'static str, Option<&Layout<3>>)],
) -> Result<Axis> {
    // Tensors of one channel or one step lie both ways: best along the longer axis.
    let mut axes = if dim < seqlen {
        vec![Axis::Seqlen, Axis::Dim]
    } else {
        vec![Axis::Dim, Axis::Seqlen]
    };
    let mut aligned = axes.clone();
    for &(tensor, layout) in signals {
        let Some(layout) = layout else { continue };
        let lies = |axis: &Axis| lines(layout, *axis, dtype);
        if !axes.iter().any(|axis| lies(axis).is_some()) {
            let names: Vec<&str> = axes.iter().map(|axis| axis.name()).collect();
            let expected = format!("a stride of 1 along {}", names.join(" or "));
            return Err(check.layout(tensor, expected, layout));
        }
        axes.retain(|axis| lies(axis).is_some());
        aligned.retain(|axis| lies(axis).is_some_and(|signal| signal.vector != 0));
    }
    // `axes` never becomes empty
    Ok(aligned
        .first()
        .or(axes.first())
        .copied()
        .unwrap_or(Axis::Dim))
}

fn signal_of(
    check: Check,
    tensor: &'static str,
    layout: &Layout<3>,
    convolution: &Convolution,
) -> Result<Signal> {
    lines(layout, convolution.axis, convolution.dtype).ok_or_else(|| {
        let expected = format!("a stride of 1 along {}", convolution.axis.name());
        check.layout(tensor, expected, layout)
    })
}

/// A tensor of states, if there is one.
fn state_of(
    check: Check,
    tensor: &'static str,
    layout: Option<&Layout<3>>,
    convolution: &Convolution,
) -> Result<State> {
    let Some(layout) = layout else {
        return Ok(State::default());
    };
    let Convolution {
        sequences,
        dim,
        width,
        ..
    } = *convolution;
    check.sizes(tensor, [sequences, dim, width - 1], layout.shape)?;
    strides_of_state(check, tensor, layout)
}

fn strides_of_state(check: Check, tensor: &'static str, layout: &Layout<3>) -> Result<State> {
    let [sequence_stride, channel_stride, step_stride] = check.strides(tensor, layout)?;
    Ok(State {
        at: 0,
        sequence_stride,
        channel_stride,
        step_stride,
    })
}

/// Weights and biases, or their gradients, each with its name.
fn filter_of(
    check: Check,
    (weight_name, weight): (&'static str, Option<&Layout<2>>),
    (bias_name, bias): (&'static str, Option<&Layout<1>>),
    [dim, width]: [usize; 2],
    dtype: Dtype,
) -> Result<Filter> {
    let mut filter = Filter {
        dtype: dtype.number(),
        // one of WIDTHS
        width: width as i32,
        ..Filter::default()
    };
    if let Some(weight) = weight {
        check.sizes(weight_name, [dim, width], weight.shape)?;
        [filter.weight_channel_stride, filter.weight_tap_stride] =
            check.strides(weight_name, weight)?;
    }
    if let Some(bias) = bias {
        check.sizes(bias_name, [dim], bias.shape)?;
        [filter.bias_stride] = check.strides(bias_name, bias)?;
    }
    Ok(filter)
}

fn checked_width(check: Check, width: usize) -> Result<()> {
    if !WIDTHS.contains(&width) {
        let available = format!("each width from {} to {}", WIDTHS.start(), WIDTHS.end());
        return Err(check.unsupported(format!("width {width}"), available));
    }
    Ok(())
}

fn checked_size(check: Check, tensor: &'static str, size: usize) -> Result<()> {
    if size > MAX_SIZE {
        let expected = format!("at most {MAX_SIZE} along each axis");
        return Err(check.shape(tensor, expected, size.to_string()));
    }
    Ok(())
}

/// How `[batch, dim, seqlen]` lies if it is contiguous along `axis`.
fn lines(layout: &Layout<3>, axis: Axis, dtype: Dtype) -> Option<Signal> {
    let (contiguous, line) = match axis {
        Axis::Dim => (1, 2),
        Axis::Seqlen => (2, 1),
    };
    if !layout.is_contiguous_along(contiguous) {
        return None;
    }
    let (batch_stride, line_stride) = (layout.step(0)?, layout.step(line)?);
    let vector = (VECTOR_BYTES / dtype.bytes()) as i64;
    Some(Signal {
        at: 0,
        batch_stride,
        line_stride,
        vector: (batch_stride % vector == 0 && line_stride % vector == 0).into(),
    })
}
