//! What the tests of every op need: the device, and tensors that notice what they should not.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use cuda_emulator::{Driver, Settings, configure};
use seqmix::attention::Attention;
use seqmix::causal_conv1d::CausalConv1d;
use seqmix::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use seqmix::gated_attention_unit::GatedAttentionUnit;
use seqmix::gemm::Gemm;
use seqmix::linear_attention::LinearAttention;
use seqmix::lru::Lru;
use seqmix::rwkv4::Rwkv4;
use seqmix::rwkv7::Rwkv7;
use seqmix::selective_scan::SelectiveScan;
use seqmix::ssd::Ssd;
use seqmix::{Element, TensorMut, TensorRef};

use crate::measure::{Bound, Verdict};

/// The device of this run and the ops on it.
pub(crate) struct Device {
    pub(crate) context: Arc<CudaContext>,
    pub(crate) driver: Driver,
    pub(crate) attention: Attention,
    pub(crate) causal_conv1d: CausalConv1d,
    pub(crate) gated_attention_unit: GatedAttentionUnit,
    pub(crate) gemm: Gemm,
    pub(crate) linear_attention: LinearAttention,
    pub(crate) lru: Lru,
    pub(crate) rwkv4: Rwkv4,
    pub(crate) rwkv7: Rwkv7,
    pub(crate) selective_scan: SelectiveScan,
    pub(crate) ssd: Ssd,
    /// cudarc synchronises a context when it makes its first stream, which would spoil a capture that another test
    /// has begun: the first lives as long as all tests.
    _first_stream: Arc<CudaStream>,
}

impl Device {
    /// A stream of one's own: tests run beside each other.
    pub(crate) fn stream(&self) -> Arc<CudaStream> {
        self.context.new_stream().unwrap()
    }
}

/// The device, opened once for all tests.
pub(crate) fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let (context, driver) = crate::device::open().unwrap_or_else(|error| panic!("{error}"));
        let attention = Attention::new(&context).unwrap_or_else(|error| panic!("{error}"));
        let causal_conv1d = CausalConv1d::new(&context).unwrap_or_else(|error| panic!("{error}"));
        let gated_attention_unit =
            GatedAttentionUnit::new(&context).unwrap_or_else(|error| panic!("{error}"));
        let gemm = Gemm::new(&context).unwrap_or_else(|error| panic!("{error}"));
        let linear_attention =
            LinearAttention::new(&context).unwrap_or_else(|error| panic!("{error}"));
        let lru = Lru::new(&context).unwrap_or_else(|error| panic!("{error}"));
        let rwkv4 = Rwkv4::new(&context).unwrap_or_else(|error| panic!("{error}"));
        let rwkv7 = Rwkv7::new(&context).unwrap_or_else(|error| panic!("{error}"));
        let selective_scan = SelectiveScan::new(&context).unwrap_or_else(|error| panic!("{error}"));
        let ssd = Ssd::new(&context).unwrap_or_else(|error| panic!("{error}"));
        Device {
            _first_stream: context.new_stream().unwrap(),
            context,
            driver,
            attention,
            causal_conv1d,
            gated_attention_unit,
            gemm,
            linear_attention,
            lru,
            rwkv4,
            rwkv7,
            selective_scan,
            ssd,
        }
    })
}

/// Until it goes, launches of this thread may race on global memory: for input that makes threads write the same
/// elements, where only the bounds of accesses are promised.
pub(crate) struct RacesPass(());

impl RacesPass {
    pub(crate) fn new() -> Self {
        Self::judge(false);
        Self(())
    }

    fn judge(global_races: bool) {
        if device().driver == Driver::Emulator {
            let settings = Settings {
                global_races: Some(global_races),
                ..Settings::default()
            };
            configure(&settings).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

impl Drop for RacesPass {
    fn drop(&mut self) {
        Self::judge(true);
    }
}

/// Fails with the measures, their bounds and the worst element.
pub(crate) fn assert_close(name: &str, found: &[f64], expected: &[f64], row: usize, bound: Bound) {
    let verdict = Verdict::of(found, expected, row, bound);
    assert!(verdict.pass(), "{name}: {verdict}");
}

/// Where the elements of a tensor lie in a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<const N: usize> {
    pub(crate) shape: [usize; N],
    /// In elements.
    pub(crate) strides: [usize; N],
    /// Elements of the buffer before the first one.
    pub(crate) offset: usize,
    /// Elements of the buffer.
    pub(crate) total: usize,
}

/// Elements before and after each tensor; a multiple of 16 bytes, and more than a tile's row.
const GUARD: usize = 512;

impl<const N: usize> Place<N> {
    /// Row-major, with the axes in memory in this `order`, outermost first, and a guard zone at each end.
    pub(crate) fn in_order(shape: [usize; N], order: [usize; N]) -> Self {
        let mut strides = [0; N];
        let mut elements = 1;
        for &axis in order.iter().rev() {
            strides[axis] = elements;
            elements *= shape[axis];
        }
        Self {
            shape,
            strides,
            offset: GUARD,
            total: elements + 2 * GUARD,
        }
    }

    /// Row-major in the order of the axes.
    pub(crate) fn contiguous(shape: [usize; N]) -> Self {
        Self::in_order(shape, std::array::from_fn(|axis| axis))
    }

    /// The `part`-th of `parts` equal tensors that lie side by side along `axis` in one buffer.
    pub(crate) fn packed(shape: [usize; N], axis: usize, part: usize, parts: usize) -> Self {
        let mut outer = shape;
        outer[axis] *= parts;
        let all = Self::contiguous(outer);
        Self {
            shape,
            offset: all.offset + part * shape[axis] * all.strides[axis],
            ..all
        }
    }

    /// The same an element further on, where no address is a multiple of 4 bytes if elements are of 16 bits.
    pub(crate) fn shifted(self) -> Self {
        Self {
            offset: self.offset + 1,
            ..self
        }
    }

    /// One tensor that stands for all indices of `axis`, whose stride is 0.
    pub(crate) fn repeated(shape: [usize; N], axis: usize) -> Self {
        let mut one = shape;
        one[axis] = one[axis].min(1);
        let mut place = Self::contiguous(one);
        place.strides[axis] = 0;
        Self { shape, ..place }
    }

    /// Where a range of an axis begins, and its shape.
    fn part(&self, axis: usize, range: Range<usize>) -> (usize, [usize; N]) {
        let mut shape = self.shape;
        shape[axis] = range.len();
        (self.offset + range.start * self.strides[axis], shape)
    }

    /// Where the elements lie in the buffer, in row-major order.
    fn elements(&self) -> Vec<usize> {
        let mut at = vec![self.offset];
        for axis in 0..N {
            let steps =
                |&at: &usize| (0..self.shape[axis]).map(move |step| at + step * self.strides[axis]);
            at = at.iter().flat_map(steps).collect();
        }
        at
    }
}

/// A tensor on the device inside a buffer whose other elements are poison.
pub(crate) struct Placed<T, const N: usize> {
    buffer: CudaSlice<T>,
    place: Place<N>,
    poison: T,
}

impl<T: Element, const N: usize> Placed<T, N> {
    /// An input: every element of the buffer that is not one of `data` is `poison`.
    pub(crate) fn input(stream: &Arc<CudaStream>, place: Place<N>, data: &[T], poison: T) -> Self {
        let mut host = vec![poison; place.total];
        let elements = place.elements();
        assert_eq!(elements.len(), data.len(), "{place:?}");
        for (at, value) in elements.into_iter().zip(data) {
            host[at] = *value;
        }
        Self {
            buffer: stream.clone_htod(&host).unwrap(),
            place,
            poison,
        }
    }

    /// An output: its elements are `unset`, the rest of the buffer is `poison`.
    pub(crate) fn output(stream: &Arc<CudaStream>, place: Place<N>, unset: T, poison: T) -> Self {
        let elements = place.shape.iter().product();
        Self::input(stream, place, &vec![unset; elements], poison)
    }

    pub(crate) fn view(&self) -> TensorRef<'_, T, N> {
        let Place {
            shape,
            strides,
            offset,
            ..
        } = self.place;
        TensorRef::new(self.buffer.slice(offset..), shape, strides).unwrap()
    }

    pub(crate) fn view_mut(&mut self) -> TensorMut<'_, T, N> {
        let Place {
            shape,
            strides,
            offset,
            ..
        } = self.place;
        TensorMut::new(self.buffer.slice_mut(offset..), shape, strides).unwrap()
    }

    /// The indices of this range of an axis.
    pub(crate) fn part(&self, axis: usize, range: Range<usize>) -> TensorRef<'_, T, N> {
        let (offset, shape) = self.place.part(axis, range);
        TensorRef::new(self.buffer.slice(offset..), shape, self.place.strides).unwrap()
    }

    pub(crate) fn part_mut(&mut self, axis: usize, range: Range<usize>) -> TensorMut<'_, T, N> {
        let (offset, shape) = self.place.part(axis, range);
        TensorMut::new(self.buffer.slice_mut(offset..), shape, self.place.strides).unwrap()
    }

    /// The elements in row-major order, after a check that nothing beside them was written.
    pub(crate) fn fetch(&self, stream: &Arc<CudaStream>, name: &str) -> Vec<T> {
        let mut host = stream.clone_dtoh(&self.buffer).unwrap();
        stream.synchronize().unwrap();
        let elements = self.place.elements();
        let result = elements.iter().map(|&at| host[at]).collect();
        for at in elements {
            host[at] = self.poison;
        }
        let written = host.iter().position(|value| *value != self.poison);
        assert_eq!(
            written, None,
            "{name}: written outside the tensor at this element of {:?}",
            self.place
        );
        result
    }
}
