//! Golden cases: reads one, runs it through the public API and judges what comes back. tests/golden/SCHEMA.md
//! describes the files, the ops and the rule.

#[path = "golden/causal_conv1d.rs"]
mod causal_conv1d;
#[path = "golden/linear_attention.rs"]
mod linear_attention;
#[path = "golden/selective_scan.rs"]
mod selective_scan;
#[path = "golden/ssd.rs"]
mod ssd;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::Pod;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use seqmix::attention::{Attention, Bias, Config, Forward, ForwardVarlen, Mask};
use seqmix::causal_conv1d::CausalConv1d;
use seqmix::cudarc::driver::{CudaContext, CudaStream};
use seqmix::gemm::{self, Activation, Addend, Epilogue, Gemm, Multiply};
use seqmix::linear_attention::LinearAttention;
use seqmix::selective_scan::SelectiveScan;
use seqmix::ssd::Ssd;
use seqmix::{Element, Error, Half, Tensor, Workspace};
use serde_json::Value;

use crate::measure::{Bound, Verdict};

/// Why a case gave no outputs to judge.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The file is no golden case.
    Unreadable(String),
    /// No kernel runs this op, dtype, shape or option.
    Unsupported(String),
    /// The call failed.
    Failed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unreadable(why) | Self::Unsupported(why) | Self::Failed(why)) = self;
        f.write_str(why)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Unsupported { .. }
            | Error::Shape { .. }
            | Error::Layout { .. }
            | Error::Argument { .. } => Self::Unsupported(error.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// One case as its file has it.
pub(crate) struct Case {
    op: String,
    params: Value,
    tolerance: HashMap<String, Value>,
    tensors: HashMap<String, Stored>,
}

/// One tensor of a case.
pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// One tensor that an op returned.
pub(crate) struct Output {
    name: &'static str,
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// What a case needs on the device: each op's kernels, and a stream to queue on.
pub(crate) struct Ops {
    stream: Arc<CudaStream>,
    attention: Attention,
    causal_conv1d: CausalConv1d,
    gemm: Gemm,
    linear_attention: LinearAttention,
    selective_scan: SelectiveScan,
    ssd: Ssd,
}

/// Where the golden cases are: tests/golden of the working directory, else of a folder above this program, else
/// of the source tree.
pub(crate) fn folder() -> PathBuf {
    let golden = Path::new("tests/golden");
    let program = std::env::current_exe().unwrap_or_default();
    let above = program
        .ancestors()
        .skip(1)
        .map(|folder| folder.join(golden));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(golden);
    let mut places = std::iter::once(golden.to_owned()).chain(above);
    places.find(|place| place.is_dir()).unwrap_or(source)
}

impl Ops {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self, Error> {
        Ok(Self {
            stream: context.default_stream(),
            attention: Attention::new(context)?,
            causal_conv1d: CausalConv1d::new(context)?,
            gemm: Gemm::new(context)?,
            linear_attention: LinearAttention::new(context)?,
            selective_scan: SelectiveScan::new(context)?,
            ssd: Ssd::new(context)?,
        })
    }
}

impl Case {
    /// Reads a `.safetensors` file.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let unreadable =
            |why: &dyn fmt::Display| Failure::Unreadable(format!("{}: {why}", path.display()));
        let file = std::fs::read(path).map_err(|error| unreadable(&error))?;
        let (_, header) = SafeTensors::read_metadata(&file).map_err(|error| unreadable(&error))?;
        let metadata = header
            .metadata()
            .as_ref()
            .ok_or_else(|| unreadable(&"no metadata"))?;
        let text = |key: &str| {
            metadata
                .get(key)
                .ok_or_else(|| unreadable(&format!("no {key} in the metadata")))
        };
        if text("schema_version")? != "1" {
            return Err(unreadable(&format!(
                "schema version {}, known is 1",
                text("schema_version")?
            )));
        }
        let contents = SafeTensors::deserialize(&file).map_err(|error| unreadable(&error))?;
        let tensors = contents.iter().map(|(name, view)| {
            let stored = Stored {
                dtype: view.dtype(),
                shape: view.shape().into(),
                bytes: view.data().into(),
            };
            (name.to_owned(), stored)
        });
        Ok(Self {
            op: text("op")?.clone(),
            params: serde_json::from_str(text("params")?).map_err(|error| unreadable(&error))?,
            tolerance: serde_json::from_str(text("tolerance")?)
                .map_err(|error| unreadable(&error))?,
            tensors: tensors.collect(),
        })
    }

    /// An optional tensor.
    pub(crate) fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name)
    }

    /// A tensor that the op cannot do without.
    pub(crate) fn need(&self, name: &str) -> Result<&Stored, Failure> {
        self.get(name)
            .ok_or_else(|| Failure::Unreadable(format!("no tensor {name}")))
    }

    /// An optional tensor on the device.
    fn optional<T: Element + Pod, const N: usize>(
        &self,
        name: &str,
        stream: &Arc<CudaStream>,
    ) -> Result<Option<Tensor<T, N>>, Failure> {
        self.get(name)
            .map(|stored| stored.upload(stream))
            .transpose()
    }

    /// A number among the params; of a list, the one at `index`.
    pub(crate) fn number(&self, name: &str, index: usize) -> Result<f64, Failure> {
        let value = &self.params[name];
        let number = value.as_f64().or_else(|| value[index].as_f64());
        number.ok_or_else(|| Failure::Unreadable(format!("no number {name} in the params")))
    }

    /// `causal` and `window` as the keys that a query sees before and after its own position.
    pub(crate) fn window(&self) -> Result<(Option<usize>, Option<usize>), Failure> {
        let bound =
            |index| Ok::<_, Failure>(Some(self.number("window", index)?).filter(|&n| n >= 0.0));
        let (left, right) = (bound(0)?, bound(1)?);
        let right = if self.flag("causal")? {
            Some(0.0)
        } else {
            right
        };
        Ok((left.map(|n| n as usize), right.map(|n| n as usize)))
    }

    /// `softcap`, which 0 turns off.
    pub(crate) fn softcap(&self) -> Result<Option<f64>, Failure> {
        Ok(Some(self.number("softcap", 0)?).filter(|&cap| cap > 0.0))
    }

    /// Runs the op on the device.
    pub(crate) fn run(&self, ops: &Ops) -> Result<Vec<Output>, Failure> {
        // the types by the names of their dtypes
        type F16 = f16;
        type BF16 = bf16;
        type F32 = f32;
        /// Calls a method with the type of the case, if it is one of these.
        macro_rules! with_type {
            ($method:ident, $($element:ident),+) => {
                match self.dtype()? {
                    $(Dtype::$element => self.$method::<$element>(ops),)+
                    other => Err(Failure::Unsupported(format!(
                        "no {} kernel for {other:?}; there are {}",
                        self.op,
                        stringify!($($element),+)
                    ))),
                }
            };
        }
        match &self.op[..] {
            "attention_forward" => with_type!(attention_forward, F16, BF16),
            "gemm" => with_type!(gemm, F16, BF16),
            "causal_conv1d_forward" => with_type!(causal_conv1d_forward, F16, BF16, F32),
            "causal_conv1d_backward" => with_type!(causal_conv1d_backward, F16, BF16, F32),
            "linear_attention_forward" => with_type!(linear_attention_forward, F16, BF16, F32),
            "linear_attention_backward" => with_type!(linear_attention_backward, F16, BF16, F32),
            "selective_scan_forward" => with_type!(selective_scan_forward, F16, BF16, F32),
            "selective_scan_backward" => with_type!(selective_scan_backward, F16, BF16, F32),
            "selective_scan_step" => with_type!(selective_scan_step, F16, BF16, F32),
            "ssd_forward" => with_type!(ssd_forward, F16, BF16, F32),
            "ssd_backward" => with_type!(ssd_backward, F16, BF16, F32),
            op => Err(Failure::Unsupported(format!("no kernel for the op {op}"))),
        }
    }

    /// The dtype of the first operand, which is that of the case.
    fn dtype(&self) -> Result<Dtype, Failure> {
        let names = ["q", "a", "x", "u"].into_iter();
        let first = names.filter_map(|name| self.get(name)).next();
        first
            .map(|tensor| tensor.dtype)
            .ok_or_else(|| Failure::Unreadable("no tensor q, a, x or u".into()))
    }

    /// The activation of a case, by name.
    pub(crate) fn activation(&self) -> Result<&str, Failure> {
        self.word("activation")
    }

    /// A word among the params.
    pub(crate) fn word(&self, name: &str) -> Result<&str, Failure> {
        let value = self.params[name].as_str();
        value.ok_or_else(|| Failure::Unreadable(format!("no {name} in the params")))
    }

    /// A truth value among the params.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Failure> {
        let value = self.params[name].as_bool();
        value.ok_or_else(|| Failure::Unreadable(format!("no {name} in the params")))
    }

    /// Judges `outputs` by the case's bounds, or by its advisory `strict` ones where it has them: a verdict for
    /// every tensor that has a tolerance, by name.
    pub(crate) fn judge(
        &self,
        outputs: &[Output],
        strict: bool,
    ) -> Result<Vec<(String, Verdict)>, Failure> {
        let mut names: Vec<&String> = self.tolerance.keys().collect();
        names.sort();
        let judged = names.into_iter().map(|name| {
            let tolerance = &self.tolerance[name];
            let bounds = if strict && tolerance["strict"].is_object() {
                &tolerance["strict"]
            } else {
                tolerance
            };
            let max_abs = bounds["max_abs"].as_f64();
            let bound = Bound {
                max_abs: max_abs
                    .ok_or_else(|| Failure::Unreadable(format!("no max_abs for {name}")))?,
                rel_l2: bounds["rel_l2"].as_f64(),
                row_rel_l2: bounds["row_rel_l2"].as_f64(),
            };
            let expected = self.need(&format!("expected.{name}"))?;
            let found = outputs.iter().find(|output| output.name == name.as_str());
            let found =
                found.ok_or_else(|| Failure::Failed(format!("the op returned no {name}")))?;
            if found.shape != expected.shape {
                return Err(Failure::Failed(format!(
                    "{name}: shape {:?}, expected {:?}",
                    found.shape, expected.shape
                )));
            }
            let row = expected.shape.last().copied().unwrap_or(1);
            Ok((
                name.clone(),
                Verdict::of(&found.values, &expected.values()?, row, bound),
            ))
        });
        judged.collect()
    }

    fn attention_forward<T: Half + Pod + Into<f64>>(
        &self,
        ops: &Ops,
    ) -> Result<Vec<Output>, Failure> {
        let mask = match self.window()? {
            (None, None) => Mask::Full,
            (None, Some(0)) => Mask::Causal,
            (left, right) => Mask::Window { left, right },
        };
        let config = Config {
            mask,
            scale: Some(self.number("softmax_scale", 0)? as f32),
            softcap: self.softcap()?.map(|cap| cap as f32),
        };
        let stream = &ops.stream;
        let varlen = self.get("cu_seqlens_q").is_some();
        let slopes = self
            .get("alibi_slopes")
            .map(|slopes| match slopes.shape[..] {
                [heads] => Tensor::from_host(stream, &slopes.elements::<f32>()?, [1, heads])
                    .map_err(Failure::from),
                _ => slopes.upload::<f32, 2>(stream),
            });
        let slopes = slopes.transpose()?;
        let (q, k, v) = (self.need("q")?, self.need("k")?, self.need("v")?);
        if varlen {
            let [q, k, v] = [
                q.upload::<T, 3>(stream)?,
                k.upload(stream)?,
                v.upload(stream)?,
            ];
            let cu_seqlens_q = self.need("cu_seqlens_q")?.upload::<i32, 1>(stream)?;
            let cu_seqlens_k = self.need("cu_seqlens_k")?.upload::<i32, 1>(stream)?;
            let [total_q, heads, _] = q.shape();
            let mut out = Tensor::zeros(stream, q.shape())?;
            let mut lse = Tensor::zeros(stream, [heads, total_q])?;
            let tensors = ForwardVarlen {
                q: q.view(),
                k: k.view(),
                v: v.view(),
                cu_seqlens_q: cu_seqlens_q.view(),
                cu_seqlens_k: cu_seqlens_k.view(),
                max_seqlen_q: self.number("max_seqlen_q", 0)? as usize,
                out: out.view_mut(),
                lse: Some(lse.view_mut()),
                alibi_slopes: slopes.as_ref().map(Tensor::view),
            };
            ops.attention.forward_varlen(stream, config, tensors)?;
            Ok(vec![
                Output::fetch("o", &out, stream)?,
                Output::fetch("lse", &lse, stream)?,
            ])
        } else {
            let [q, k, v] = [
                q.upload::<T, 4>(stream)?,
                k.upload(stream)?,
                v.upload(stream)?,
            ];
            let mask = self
                .get("attn_mask")
                .map(|mask| mask.upload::<u8, 3>(stream))
                .transpose()?;
            let [batch, seq_q, heads, _] = q.shape();
            let mut out = Tensor::zeros(stream, q.shape())?;
            let mut lse = Tensor::zeros(stream, [batch, heads, seq_q])?;
            let tensors = Forward {
                q: q.view(),
                k: k.view(),
                v: v.view(),
                out: out.view_mut(),
                lse: Some(lse.view_mut()),
                bias: Bias {
                    alibi_slopes: slopes.as_ref().map(Tensor::view),
                    attn_mask: mask.as_ref().map(Tensor::view),
                },
            };
            ops.attention.forward(stream, config, tensors)?;
            Ok(vec![
                Output::fetch("o", &out, stream)?,
                Output::fetch("lse", &lse, stream)?,
            ])
        }
    }
}

impl Case {
    /// A tensor of two axes as a batch of one matrix.
    fn matrix<T: Element + Pod>(
        &self,
        name: &str,
        stream: &Arc<CudaStream>,
    ) -> Result<Option<Tensor<T, 3>>, Failure> {
        let upload = |stored: &Stored| match stored.shape[..] {
            [rows, columns] => {
                let elements = stored.elements()?;
                Ok(Tensor::from_host(stream, &elements, [1, rows, columns])?)
            }
            _ => Err(Failure::Unreadable(format!("{name} is no matrix"))),
        };
        self.get(name).map(upload).transpose()
    }

    fn gemm<T: Half + Pod + Into<f64>>(&self, ops: &Ops) -> Result<Vec<Output>, Failure> {
        let activation = match self.activation()? {
            "none" => Activation::None,
            "relu" => Activation::Relu,
            "gelu_tanh" => Activation::GeluTanh,
            "gelu_erf" => Activation::GeluErf,
            "silu" => Activation::Silu,
            other => return Err(Failure::Unsupported(format!("no activation {other}"))),
        };
        let config = gemm::Config {
            alpha: self.number("alpha", 0)? as f32,
            beta: self.number("beta", 0)? as f32,
            ..gemm::Config::default()
        };
        let stream = &ops.stream;
        let need = |name: &str| {
            let missing = || Failure::Unreadable(format!("no tensor {name}"));
            self.matrix::<T>(name, stream)?.ok_or_else(missing)
        };
        let (stored_a, stored_b) = (need("a")?, need("b")?);
        let (mut a, mut b) = (stored_a.view(), stored_b.view());
        if self.flag("trans_a")? {
            a = a.transposed();
        }
        if self.flag("trans_b")? {
            b = b.transposed();
        }
        let ([_, m, _], [_, _, n]) = (a.shape(), b.shape());
        let c = self.matrix::<T>("c", stream)?;
        let residual = self.matrix::<T>("residual", stream)?;
        let bias = match self.get("bias") {
            Some(bias) => Some(Tensor::from_host(stream, &bias.elements::<T>()?, [1, n])?),
            None => None,
        };
        let mut d = Tensor::<T, 3>::zeros(stream, [1, m, n])?;
        let mut tensors = Multiply {
            c: c.as_ref()
                .map_or(Addend::None, |c| Addend::Tensor(c.view())),
            bias: bias.as_ref().map(Tensor::view),
            epilogue: Epilogue::Activate {
                activation,
                preactivation: None,
            },
            residual: residual.as_ref().map(Tensor::view),
            ..Multiply::new(a, b, d.view_mut())
        };
        let mut workspace = Workspace::new(stream);
        workspace.reserve(
            ops.gemm
                .plan(stream, config, &mut tensors)?
                .workspace_bytes(),
        )?;
        ops.gemm.multiply(stream, config, tensors, &mut workspace)?;
        let mut output = Output::fetch("d", &d, stream)?;
        output.shape.remove(0); // the batch of one
        Ok(vec![output])
    }
}

impl Output {
    /// Waits for a result and copies it to the host.
    fn fetch<T: Element + Into<f64>, const N: usize>(
        name: &'static str,
        tensor: &Tensor<T, N>,
        stream: &Arc<CudaStream>,
    ) -> Result<Self, Failure> {
        let values = tensor
            .to_host(stream)?
            .into_iter()
            .map(Into::into)
            .collect();
        Ok(Self {
            name,
            shape: tensor.shape().into(),
            values,
        })
    }
}

impl Stored {
    /// The elements as numbers.
    pub(crate) fn values(&self) -> Result<Vec<f64>, Failure> {
        Ok(match self.dtype {
            Dtype::F16 => self.elements::<f16>()?.into_iter().map(f64::from).collect(),
            Dtype::BF16 => self
                .elements::<bf16>()?
                .into_iter()
                .map(f64::from)
                .collect(),
            Dtype::F32 => self.elements::<f32>()?.into_iter().map(f64::from).collect(),
            Dtype::I32 => self.elements::<i32>()?.into_iter().map(f64::from).collect(),
            Dtype::U8 => self.bytes.iter().map(|&byte| f64::from(byte)).collect(),
            other => return Err(Failure::Unreadable(format!("a tensor of dtype {other:?}"))),
        })
    }

    /// The elements as they are stored: little-endian, as on every machine that has a GPU.
    fn elements<T: Element + Pod>(&self) -> Result<Vec<T>, Failure> {
        let dtype = format!("{:?}", self.dtype).to_lowercase();
        if dtype != T::DTYPE.name() {
            let message = format!("a tensor of {dtype} where {} belongs", T::DTYPE.name());
            return Err(Failure::Unreadable(message));
        }
        let elements = self.bytes.chunks_exact(size_of::<T>());
        Ok(elements.map(bytemuck::pod_read_unaligned).collect())
    }

    /// The tensor on the device.
    fn upload<T: Element + Pod, const N: usize>(
        &self,
        stream: &Arc<CudaStream>,
    ) -> Result<Tensor<T, N>, Failure> {
        let shape = <[usize; N]>::try_from(&self.shape[..]);
        let shape = shape.map_err(|_| {
            Failure::Unreadable(format!("shape {:?}, expected {N} axes", self.shape))
        })?;
        Ok(Tensor::from_host(stream, &self.elements()?, shape)?)
    }
}
