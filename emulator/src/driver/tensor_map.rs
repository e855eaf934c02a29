//! Tensor maps: the encoder, with the checks of the real one.

use super::error::{Error, Result};
use super::ffi::{CUdeviceptr, CUresult, In, Out, call};
use crate::tensor_map::{TENSOR_MAP_BYTES, TensorMap, TensorType};

/// `CUtensorMap`: 128 opaque bytes that must lie at a multiple of 64.
#[repr(C, align(64))]
pub(super) struct Encoded([u8; TENSOR_MAP_BYTES]);

/// A small enumeration of the driver API, or an error that names it.
fn choose<T: Copy>(name: &str, number: u32, values: &[T]) -> Result<T> {
    let value = values.get(number as usize).copied();
    value.ok_or_else(|| Error::value(format!("{number} is no {name}")))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuTensorMapEncodeTiled(
    out: Out<Encoded>,
    element: u32,
    rank: u32,
    address: CUdeviceptr,
    dims: In<u64>,
    strides: In<u64>,
    boxes: In<u32>,
    steps: In<u32>,
    interleave: u32,
    swizzle: u32,
    l2_promotion: u32,
    fill: u32,
) -> CUresult {
    /// Packed types of 4 and 6 bits follow the last that is emulated.
    const PACKED: std::ops::RangeInclusive<u32> = 13..=15;
    /// Swizzles of larger chunks follow that of 128 bytes.
    const OTHER_SWIZZLES: std::ops::RangeInclusive<u32> = 4..=6;
    call("cuTensorMapEncodeTiled", || {
        out.check()?;
        if !out.is_aligned() {
            let text = "the address of the tensor map is not a multiple of 64";
            return Err(Error::value(text));
        }
        if PACKED.contains(&element) {
            let text = format!("tensor maps of the packed type {element} are not emulated");
            return Err(Error::unsupported(text));
        }
        let element = TensorType::from_number(element)
            .ok_or_else(|| Error::value(format!("{element} is no CUtensorMapDataType")))?;
        match choose("CUtensorMapInterleave", interleave, &["", "16B", "32B"])? {
            "" => {}
            name => {
                let text = format!("tensor maps of interleave {name} are not emulated");
                return Err(Error::unsupported(text));
            }
        }
        if OTHER_SWIZZLES.contains(&swizzle) {
            let text = format!(
                "tensor maps of swizzle {swizzle} are not emulated: it moves more than 16 bytes at once"
            );
            return Err(Error::unsupported(text));
        }
        let swizzle = choose("CUtensorMapSwizzle", swizzle, &[0, 32, 64, 128])?;
        // what is fetched into L2 changes no result
        choose("CUtensorMapL2promotion", l2_promotion, &[(); 4])?;
        let nan_fill = choose("CUtensorMapFloatOOBfill", fill, &[false, true])?;
        if !(1..=5).contains(&rank) {
            return Err(Error::value(format!(
                "a tensor of rank {rank}; there are 1 to 5"
            )));
        }
        let rank = rank as usize;
        // SAFETY: C passes as many sizes, boxes and steps as the rank says, and one stride less.
        let map = unsafe {
            TensorMap {
                element,
                address,
                dims: dims.list(rank)?,
                strides: if rank == 1 {
                    Vec::new()
                } else {
                    strides.list(rank - 1)?
                },
                boxes: boxes.list(rank)?,
                steps: steps.list(rank)?,
                swizzle,
                nan_fill,
            }
        };
        let bytes = map.encode().map_err(Error::value)?;
        let inner = map.boxes[0] * element.bytes() as u32;
        if swizzle != 0 && inner != swizzle {
            let text = format!(
                "a box of {inner} inner bytes with a swizzle of {swizzle} is not emulated: they must be equal"
            );
            return Err(Error::unsupported(text));
        }
        out.set(Encoded(bytes))
    })
}
