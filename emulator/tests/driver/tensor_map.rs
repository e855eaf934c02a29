//! The encoder of tensor maps: what it takes and what it refuses.

use std::ffi::c_void;

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUresult};

use crate::{assert_error, context};

/// The arguments of `cuTensorMapEncodeTiled`, with the enumerations as numbers.
#[derive(Clone)]
struct Arguments {
    /// Bytes by which the map's address misses a multiple of 64.
    shift: usize,
    element: u32,
    rank: u32,
    address: u64,
    dims: [u64; 6],
    strides: [u64; 5],
    boxes: [u32; 6],
    steps: [u32; 6],
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
}

/// A matrix of 64 by 32 elements of f16, in boxes of 64 by 8.
const GOOD: Arguments = Arguments {
    shift: 0,
    element: 6,
    rank: 2,
    address: 1 << 48,
    dims: [64, 32, 1, 1, 1, 1],
    strides: [128; 5],
    boxes: [64, 8, 1, 1, 1, 1],
    steps: [1; 6],
    interleave: 0,
    swizzle: 3,
    promotion: 2,
    fill: 1,
};

#[repr(C, align(64))]
struct Room([u8; 256]);

impl Arguments {
    fn encode(&self) -> Result<[u8; 128], DriverError> {
        context();
        let mut room = Room([0; 256]);
        let map = room.0[self.shift..].as_mut_ptr();
        // SAFETY: the numbers are those of the C enumerations, whose Rust kin have the same size and these values; the
        // arrays are as long as the largest rank; the map has room.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.cast(),
                std::mem::transmute::<u32, sys::CUtensorMapDataType>(self.element),
                self.rank,
                self.address as *mut c_void,
                self.dims.as_ptr(),
                self.strides.as_ptr(),
                self.boxes.as_ptr(),
                self.steps.as_ptr(),
                std::mem::transmute::<u32, sys::CUtensorMapInterleave>(self.interleave),
                std::mem::transmute::<u32, sys::CUtensorMapSwizzle>(self.swizzle),
                std::mem::transmute::<u32, sys::CUtensorMapL2promotion>(self.promotion),
                std::mem::transmute::<u32, sys::CUtensorMapFloatOOBfill>(self.fill),
            )
        }
        .result()?;
        Ok(room.0[..128].try_into().unwrap())
    }
}

#[test]
fn a_map_depends_on_all_that_matters() {
    let first = GOOD.encode().unwrap();
    assert_eq!(first, GOOD.encode().unwrap());
    let changes: [fn(&mut Arguments); 7] = [
        |a| a.element = 9,
        |a| a.address += 16,
        |a| a.dims[1] += 1,
        |a| a.strides[0] += 16,
        |a| a.boxes[1] += 1,
        |a| a.steps[1] += 1,
        |a| a.fill = 0,
    ];
    for change in changes {
        let mut arguments = GOOD.clone();
        change(&mut arguments);
        assert_ne!(first, arguments.encode().unwrap());
    }
    // a hint changes nothing
    let mut arguments = GOOD.clone();
    arguments.promotion = 0;
    assert_eq!(first, arguments.encode().unwrap());
}

#[test]
fn what_breaks_a_rule_is_refused() {
    type Change = fn(&mut Arguments);
    let cases: [(Change, &str); 11] = [
        (|a| a.shift = 16, "not a multiple of 64"),
        (|a| a.rank = 0, "rank 0"),
        (|a| a.rank = 6, "rank 6"),
        (|a| a.address += 8, "not a multiple of 16"),
        (|a| a.dims[1] = 0, "1 to 2^32"),
        (|a| a.strides[0] = 136, "a multiple of 16"),
        (|a| a.boxes[1] = 257, "1 to 256"),
        (|a| a.steps[1] = 9, "1 to 8"),
        (|a| a.boxes[0] = 65, "130 bytes"),
        (|a| a.boxes[0] = 72, "more than the 128"),
        (|a| a.element = 1, "NaN"),
    ];
    for (change, words) in cases {
        let mut arguments = GOOD.clone();
        change(&mut arguments);
        assert_error(
            arguments.encode(),
            CUresult::CUDA_ERROR_INVALID_VALUE,
            words,
        );
    }
}

#[test]
fn what_is_not_emulated_says_so() {
    type Change = fn(&mut Arguments);
    let cases: [(Change, &str); 4] = [
        (|a| a.interleave = 1, "interleave 16B"),
        (|a| a.swizzle = 4, "swizzle 4"),
        (|a| a.element = 14, "packed type 14"),
        (|a| a.boxes[0] = 32, "64 inner bytes with a swizzle of 128"),
    ];
    for (change, words) in cases {
        let mut arguments = GOOD.clone();
        change(&mut arguments);
        assert_error(
            arguments.encode(),
            CUresult::CUDA_ERROR_NOT_SUPPORTED,
            words,
        );
    }
}
