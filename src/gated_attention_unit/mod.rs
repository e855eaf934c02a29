//! The gated attention unit, and attention in chunks of mixed forms: Hua, Dai, Liu and Le, "Transformer Quality in
//! Linear Time", 2022. The unit is GAU; in chunks of mixed forms, it is the layer of FLASH.
//!
//! Queries and keys are made of the same few channels `z`; there is one head, and no softmax:
//!
//! ```text
//! q[i]   = gamma_q z[i] + beta_q                      k likewise, with its own numbers
//! A[i,j] = max(scale q[i] . k[j] + bias[i - j], 0)^2  causal: 0 for j > i
//! out[i] = u[i] (sum over j of A[i,j] v[j])
//! ```
//!
//! In chunks of mixed forms, the sum is over the steps of a chunk, and between chunks attention is linear, with
//! another pair of queries and keys of `z`. The cost is then linear in the length.

mod backward;
mod block;
mod block_backward;
mod plan;
mod problem;
mod tensors;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DeviceRepr};

use crate::abi::gated_attention_unit::{
    self as abi, ATTEND, Attend, AttendParams, CARRY, CarryParams, GradientParams, Layer, Rows,
    StatesParams, SumsParams, TILES, Tiles,
};
use crate::driver::Device;
use crate::error::Result;
use crate::images;
use crate::launch::{Kernel, Launch};
use crate::tensor::{self, Float, TensorRef};
use crate::workspace::{Scratch, Workspace};
use plan::{Met, States};
use problem::{LINEAR, Layouts, MixedLayout, PairLayout, Problem, QUADRATIC};

pub use block::{Block, BlockForward, Weights};
pub use block_backward::BlockBackward;
pub use plan::{BackwardPlan, Plan};
pub use tensors::{Affine, AffineMut, Backward, Config, Forward, Mixed, Pair, PairMut, Unit};

/// Alignment of what the kernels copy 16 bytes at a time.
const COPY_BYTES: u64 = 16;

/// The kernels of the gated attention unit, loaded into one context.
///
/// ```no_run
/// use half::bf16;
/// use seqmix::gated_attention_unit::{Affine, Config, Forward, GatedAttentionUnit, Pair, Unit};
/// use seqmix::{Tensor, Workspace};
///
/// # fn main() -> seqmix::Result<()> {
/// let context = seqmix::context(0)?;
/// let stream = context.default_stream();
/// let gau = GatedAttentionUnit::new(&context)?;
///
/// // 300 steps with 64 channels for queries and keys, and 256 for values.
/// let ones = |count| vec![bf16::ONE; count];
/// let u = Tensor::from_host(&stream, &ones(300 * 256), [1, 300, 256])?;
/// let z = Tensor::from_host(&stream, &ones(300 * 64), [1, 300, 64])?;
/// let gamma = Tensor::from_host(&stream, &[1.0; 64], [64])?;
/// let beta = Tensor::<f32, 1>::zeros(&stream, [64])?;
/// let plain = || Affine { gamma: gamma.view(), beta: beta.view() };
/// let pair = Pair { q: plain(), k: plain() };
/// let mut out = Tensor::<bf16, 3>::zeros(&stream, u.shape())?;
/// let tensors = Forward {
///     unit: Unit::new(u.view(), u.view(), z.view(), pair),
///     out: out.view_mut(),
/// };
/// let config = Config { scale: 1.0 / 64.0, causal: true, ..Config::default() };
/// let mut workspace = Workspace::new(&stream);
/// workspace.reserve(gau.plan(config, &tensors)?.workspace_bytes())?;
/// gau.forward(&stream, config, tensors, &mut workspace)?; // queued
///
/// // Each score is 1: a step's output is the number of steps up to it.
/// assert_eq!(out.to_host(&stream)?[99 * 256].to_f32(), 100.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct GatedAttentionUnit {
    /// The rows of the tables that the device can run, and their kernels.
    attend_rows: Vec<Attend>,
    attend: Vec<Kernel<AttendParams>>,
    tiles: Vec<Tiles>,
    states: Vec<Kernel<StatesParams>>,
    gradients: Vec<Kernel<GradientParams>>,
    /// In the order of [`CARRY`].
    carry: Vec<Kernel<CarryParams>>,
    sums: Kernel<SumsParams>,
    device: Device,
    ctx: Arc<CudaContext>,
}

// SAFETY: numbers in `repr(C)` order; the stub that build.rs writes for each kernel asserts that the
// struct in C++ has the same size and offsets.
unsafe impl DeviceRepr for AttendParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for StatesParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for CarryParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for GradientParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SumsParams {}

/// Loads one kernel, which has an image of its own.
fn load<P: DeviceRepr>(ctx: &Arc<CudaContext>, entry: &crate::abi::Entry) -> Result<Kernel<P>> {
    Kernel::load(&images::load(ctx, &entry.name)?, entry)
}

impl GatedAttentionUnit {
    /// Loads the kernels.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`](crate::Error::KernelsNotBuilt) if the crate was built without nvcc;
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the device is older than compute capability
    /// 8.0; [`Error::Load`](crate::Error::Load) and driver errors.
    pub fn new(ctx: &Arc<CudaContext>) -> Result<Self> {
        let device = Device::of("gated_attention_unit", ctx)?;
        let fits = |bytes: usize| bytes <= device.shared_bytes;
        let attend_rows = ATTEND.iter().copied();
        let attend_rows: Vec<Attend> = attend_rows.filter(|row| fits(row.shared_bytes())).collect();
        let tiles = TILES.iter().copied();
        let tiles: Vec<Tiles> = tiles
            .filter(|row| fits(row.states_shared_bytes().max(row.gradients_shared_bytes())))
            .collect();
        let attend: Result<_> = attend_rows
            .iter()
            .map(|row| load(ctx, &row.entry()))
            .collect();
        let states: Result<_> = tiles.iter().map(|row| load(ctx, &row.states())).collect();
        let gradients: Result<_> = tiles
            .iter()
            .map(|row| load(ctx, &row.gradients()))
            .collect();
        let carry: Result<_> = CARRY
            .iter()
            .map(|&dtype| load(ctx, &abi::carry(dtype)))
            .collect();
        Ok(Self {
            attend: attend?,
            states: states?,
            gradients: gradients?,
            carry: carry?,
            sums: load(ctx, &abi::sums())?,
            attend_rows,
            tiles,
            device,
            ctx: ctx.clone(),
        })
    }

    /// How [`GatedAttentionUnit::forward`] would run: which kernel, and how many bytes of workspace it needs.
    ///
    /// Nothing is queued.
    ///
    /// # Errors
    /// As [`GatedAttentionUnit::forward`], for what can be known without a stream.
    pub fn plan<T: Float>(&self, config: Config, tensors: &Forward<'_, T>) -> Result<Plan> {
        let (problem, _) = describe(config, tensors)?;
        self.plan_problem(&problem)
    }

    /// The plan of a unit whose output has this layout.
    fn plan_unit<T: Float>(
        &self,
        config: Config,
        unit: &Unit<'_, T>,
        out: tensor::Layout<3>,
    ) -> Result<Plan> {
        let (problem, _) = describe_unit(config, unit, out)?;
        self.plan_problem(&problem)
    }

    fn plan_problem(&self, problem: &Problem) -> Result<Plan> {
        Plan::new(problem, &self.attend_rows, &self.tiles, &self.device)
    }

    /// Queues a unit on `stream`.
    ///
    /// Sums are `f32`; what enters a product of tensor cores (queries, keys, squares of scores, states) is rounded to
    /// `T`, and `f32` is multiplied with its 24 bits, in six times the work. Squares of scores and states may exceed
    /// what `f16` holds: they are divided by powers of two. The same inputs give the same bits.
    ///
    /// # Errors
    /// Shapes, layouts or options that do not fit, see [`Error`](crate::Error);
    /// [`Error::Unsupported`](crate::Error::Unsupported) if `dz` is more than 128 on a GPU whose blocks have less than
    /// 163 KiB of shared memory (compute capabilities 8.6, 8.9 and 12.0), or if there are more steps than one launch
    /// takes, 4 194 240; [`Error::Workspace`](crate::Error::Workspace) if fewer bytes are reserved than
    /// [`Plan::workspace_bytes`]. Nothing is queued then.
    pub fn forward<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        tensors: Forward<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.forward_with(stream, config, tensors, &mut workspace.scratch())
    }

    /// [`GatedAttentionUnit::forward`] in a part of a workspace.
    fn forward_with<T: Float>(
        &self,
        stream: &Arc<CudaStream>,
        config: Config,
        mut tensors: Forward<'_, T>,
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let (problem, out) = describe(config, &tensors)?;
        let mut memory;
        let mut launch = Launch::new(problem.op, stream);
        launch.same_context("the operation", &self.ctx)?;
        let inputs = Inputs::read(&mut launch, &problem, &tensors.unit)?;
        let out = Rows {
            at: launch.write("out", &mut tensors.out, COPY_BYTES)?,
            ..out
        };
        if problem.is_empty() {
            return launch.check();
        }
        let plan = self.plan_problem(&problem)?;
        memory = scratch.take(plan.workspace_bytes())?;
        let start = match &mut memory {
            Some(memory) => launch.write("workspace", memory, COPY_BYTES)?,
            None => 0,
        };
        let side = inputs.queries();
        if let Some(states) = &plan.states {
            // SAFETY: `Problem` checked that the tensors have the sizes and strides that the parameters tell the
            // kernels, and the workspace has room for all chunks.
            unsafe {
                self.add_states::<T>(&launch, &plan, &side, inputs.v, (states, start), states.met)
            }?;
        }
        let params = AttendParams {
            values: inputs.v,
            gate: inputs.u,
            out,
            ..side.attend(plan.states.map(|states| states.met), start)
        };
        // SAFETY: as above; the kernel clamps what it reads from cu_seqlens to the steps.
        unsafe { launch.run(&self.attend[plan.attend], plan.grid, &params) }
    }

    /// Queues the kernels that compute what the rows of each chunk meet, of a workspace that begins at `start`.
    ///
    /// # Safety
    /// The tensors of `side` and `values` must be as they say, and the workspace have room as planned.
    unsafe fn add_states<T: Float>(
        &self,
        launch: &Launch<'_>,
        plan: &Plan,
        side: &Side,
        values: Rows,
        (states, start): (&States, u64),
        met: Met,
    ) -> Result<()> {
        let at = |offset: usize| start + offset as u64;
        let params = StatesParams {
            layer: side.layer,
            linear: side.linear_columns,
            values,
            states: at(states.states),
        };
        // SAFETY: this function's own condition; the kernel clamps what it reads from cu_seqlens to the steps, so
        // that no slot is beyond those counted.
        unsafe { launch.run(&self.states[plan.tiles], states.grid, &params) }?;
        let params = CarryParams {
            layer: side.layer,
            states: at(states.states),
            met: at(met.states),
            units: at(met.units),
        };
        let dtype = CARRY.iter().position(|&dtype| dtype == T::DTYPE);
        let kernel = &self.carry[dtype.unwrap_or(0)];
        // SAFETY: as above; it reads what the kernel before it wrote.
        unsafe { launch.run(kernel, states.carry_grid, &params) }
    }
}

/// The inputs of a call with addresses.
#[derive(Clone, Copy, Debug)]
struct Inputs {
    layer: Layer,
    u: Rows,
    v: Rows,
    /// Of queries and keys.
    quadratic: [abi::Affine; 2],
    /// The same, or addresses of 0.
    linear: [abi::Affine; 2],
}

impl Inputs {
    fn read<'a, T: Float>(
        launch: &mut Launch<'a>,
        problem: &Problem,
        unit: &'a Unit<'_, T>,
    ) -> Result<Self> {
        let mut layer = problem.layer;
        let mut pair = |names: [&'static str; 4], pair: &'a Pair<'_>| -> Result<_> {
            let mut affine = |name: [&'static str; 2], by: &'a Affine<'_>| -> Result<_> {
                Ok(abi::Affine {
                    gamma: launch.read(name[0], &by.gamma, 4)?,
                    beta: launch.read(name[1], &by.beta, 4)?,
                })
            };
            Ok([
                affine([names[0], names[1]], &pair.q)?,
                affine([names[2], names[3]], &pair.k)?,
            ])
        };
        let quadratic = pair(QUADRATIC, &unit.quadratic)?;
        let linear = match &unit.mixed {
            Some(mixed) => pair(LINEAR, &mixed.linear)?,
            None => Default::default(),
        };
        layer.z.at = launch.read("z", &unit.z, COPY_BYTES)?;
        if let Some(bias) = &unit.bias {
            layer.bias = launch.read("bias", bias, 4)?;
        }
        if let Some(cu_seqlens) = &unit.cu_seqlens {
            layer.cu_seqlens = launch.read("cu_seqlens", cu_seqlens, 4)?;
        }
        Ok(Self {
            layer,
            u: Rows {
                at: launch.read("u", &unit.u, COPY_BYTES)?,
                ..problem.u
            },
            v: Rows {
                at: launch.read("v", &unit.v, COPY_BYTES)?,
                ..problem.v
            },
            quadratic,
            linear,
        })
    }

    /// Rows are queries and columns are keys.
    fn queries(&self) -> Side {
        self.side(0)
    }

    /// Rows are keys and columns are queries.
    fn keys(&self) -> Side {
        self.side(1)
    }

    fn side(&self, rows: usize) -> Side {
        Side {
            layer: Layer {
                reversed: rows as i32, // 0 or 1
                ..self.layer
            },
            rows: self.quadratic[rows],
            columns: self.quadratic[1 - rows],
            linear_rows: self.linear[rows],
            linear_columns: self.linear[1 - rows],
        }
    }
}

/// What makes rows and columns of scores.
#[derive(Clone, Copy, Debug)]
struct Side {
    layer: Layer,
    rows: abi::Affine,
    columns: abi::Affine,
    linear_rows: abi::Affine,
    linear_columns: abi::Affine,
}

impl Side {
    /// Attention of these rows to these columns, and to `met`, without tensors.
    fn attend(&self, met: Option<Met>, start: u64) -> AttendParams {
        let address = |offset: Option<usize>| offset.map_or(0, |offset| start + offset as u64);
        AttendParams {
            layer: self.layer,
            rows: self.rows,
            columns: self.columns,
            linear: self.linear_rows,
            states: address(met.map(|met| met.states)),
            units: address(met.map(|met| met.units)),
            ..AttendParams::default()
        }
    }
}

fn describe<T: Float>(config: Config, tensors: &Forward<'_, T>) -> Result<(Problem, Rows)> {
    describe_unit(config, &tensors.unit, tensors.out.layout())
}

fn describe_unit<T: Float>(
    config: Config,
    unit: &Unit<'_, T>,
    out: tensor::Layout<3>,
) -> Result<(Problem, Rows)> {
    let op = "gated_attention_unit::forward";
    let problem = Problem::new(op, T::DTYPE, config, &layouts(unit))?;
    let out = problem.like_v("out", out)?;
    Ok((problem, out))
}

/// The layouts of a unit's tensors.
fn layouts<T: Float>(unit: &Unit<'_, T>) -> Layouts {
    Layouts {
        u: unit.u.layout(),
        v: unit.v.layout(),
        z: unit.z.layout(),
        quadratic: pair_layout(&unit.quadratic),
        bias: unit.bias.as_ref().map(TensorRef::layout),
        mixed: unit.mixed.as_ref().map(|mixed| MixedLayout {
            chunk: mixed.chunk,
            scale: mixed.scale,
            linear: pair_layout(&mixed.linear),
        }),
        cu_seqlens: unit.cu_seqlens.as_ref().map(TensorRef::layout),
    }
}

fn pair_layout(pair: &Pair<'_>) -> PairLayout {
    [&pair.q.gamma, &pair.q.beta, &pair.k.gamma, &pair.k.beta].map(TensorRef::layout)
}
