//! Tensor maps: how a tensor lies in global memory and which boxes of it are copied.
//!
//! The driver owns the 128 bytes of a `CUtensorMap`; a program carries them from the encoder to the kernel, and
//! `tensormap.replace` changes them. Here they hold the fields as they are, behind a word that says so and a sum over them.

use crate::ir::Scalar;

/// What the first eight bytes of an encoded map are.
const MAGIC: u64 = 0x7061_4d72_6f73_6e54;
/// Bytes of an encoded map.
pub const TENSOR_MAP_BYTES: usize = 128;

/// The type of a tensor's elements: `CUtensorMapDataType` without the packed types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TensorType {
    /// 8-bit unsigned integer.
    U8 = 0,
    /// 16-bit unsigned integer.
    U16 = 1,
    /// 32-bit unsigned integer.
    U32 = 2,
    /// 32-bit signed integer.
    S32 = 3,
    /// 64-bit unsigned integer.
    U64 = 4,
    /// 64-bit signed integer.
    S64 = 5,
    /// 16-bit float.
    F16 = 6,
    /// 32-bit float.
    F32 = 7,
    /// 64-bit float.
    F64 = 8,
    /// The 16-bit float with the range of f32.
    Bf16 = 9,
    /// f32 whose subnormal values are flushed to zero.
    F32Ftz = 10,
    /// f32 rounded to tf32.
    Tf32 = 11,
    /// tf32 whose subnormal values are flushed to zero.
    Tf32Ftz = 12,
}

impl TensorType {
    const ALL: [TensorType; 13] = [
        TensorType::U8,
        TensorType::U16,
        TensorType::U32,
        TensorType::S32,
        TensorType::U64,
        TensorType::S64,
        TensorType::F16,
        TensorType::F32,
        TensorType::F64,
        TensorType::Bf16,
        TensorType::F32Ftz,
        TensorType::Tf32,
        TensorType::Tf32Ftz,
    ];

    /// By its number in `CUtensorMapDataType`.
    pub fn from_number(number: u32) -> Option<TensorType> {
        Self::ALL.get(number as usize).copied()
    }

    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            TensorType::U8 => 1,
            TensorType::U16 | TensorType::F16 | TensorType::Bf16 => 2,
            TensorType::U64 | TensorType::S64 | TensorType::F64 => 8,
            _ => 4,
        }
    }

    fn is_float(self) -> bool {
        self as u8 >= TensorType::F16 as u8
    }

    /// The type that reductions compute in.
    pub(crate) fn scalar(self) -> Scalar {
        match self {
            TensorType::U8 => Scalar::U8,
            TensorType::U16 => Scalar::U16,
            TensorType::U32 => Scalar::U32,
            TensorType::S32 => Scalar::S32,
            TensorType::U64 => Scalar::U64,
            TensorType::S64 => Scalar::S64,
            TensorType::F16 => Scalar::F16,
            TensorType::Bf16 => Scalar::Bf16,
            TensorType::F64 => Scalar::F64,
            _ => Scalar::F32,
        }
    }
}

/// A tensor map: what `cuTensorMapEncodeTiled` takes, without interleaving. Dimension 0 is the innermost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Type of the elements.
    pub element: TensorType,
    /// Address of the first element.
    pub address: u64,
    /// Elements of each dimension; as many as the tensor's rank, 1 to 5.
    pub dims: Vec<u64>,
    /// Bytes from one index to the next of each dimension but the first.
    pub strides: Vec<u64>,
    /// Elements that a box spans in each dimension.
    pub boxes: Vec<u32>,
    /// Steps from one element of a box to the next; that of the first dimension is ignored.
    pub steps: Vec<u32>,
    /// Bytes of a row of shared memory within which 16-byte chunks change places: 0, 32, 64 or 128.
    pub swizzle: u32,
    /// Elements outside the tensor arrive as NaN, not as zero.
    pub nan_fill: bool,
}

impl TensorMap {
    /// The 128 bytes, if the encoder takes these values.
    ///
    /// # Errors
    /// The rule that they break: those of `cuTensorMapEncodeTiled` in the reference of the driver API.
    pub fn encode(&self) -> Result<[u8; TENSOR_MAP_BYTES], String> {
        self.check()?;
        let mut fields = Fields {
            address: self.address,
            element: self.element,
            rank: self.dims.len() as u8,
            swizzle: self.swizzle as u8,
            nan_fill: self.nan_fill,
            ..Fields::default()
        };
        for (at, &size) in self.dims.iter().enumerate() {
            fields.set_size(at, size)?;
            fields.set_box(at, self.boxes[at])?;
            fields.set_step(at, self.steps[at])?;
        }
        fields.strides[..self.strides.len()].copy_from_slice(&self.strides);
        Ok(fields.to_bytes())
    }

    /// The map of 128 bytes.
    ///
    /// # Errors
    /// They are no map, or hold one that the encoder would not have made.
    pub(crate) fn decode(bytes: &[u8; TENSOR_MAP_BYTES]) -> Result<TensorMap, String> {
        let fields = Fields::from_bytes(bytes)?;
        let rank = usize::from(fields.rank);
        let map = TensorMap {
            element: fields.element,
            address: fields.address,
            dims: fields.sizes[..rank]
                .iter()
                .map(|&less_one| u64::from(less_one) + 1)
                .collect(),
            strides: fields.strides[..rank - 1].to_vec(),
            boxes: fields.boxes[..rank]
                .iter()
                .map(|&size| size.into())
                .collect(),
            steps: fields.steps[..rank]
                .iter()
                .map(|&step| step.into())
                .collect(),
            swizzle: fields.swizzle.into(),
            nan_fill: fields.nan_fill,
        };
        map.check()?;
        Ok(map)
    }

    /// Elements that a box has in each dimension.
    pub(crate) fn counts(&self) -> Vec<usize> {
        let steps = std::iter::once(1).chain(self.steps.iter().copied().skip(1));
        (self.boxes.iter().zip(steps))
            .map(|(size, step)| size.div_ceil(step) as usize)
            .collect()
    }

    fn check(&self) -> Result<(), String> {
        let rank = self.dims.len();
        if !(1..=5).contains(&rank) {
            return Err(format!("a tensor of rank {rank}; there are 1 to 5"));
        }
        for (name, found, wanted) in [
            ("strides", self.strides.len(), rank - 1),
            ("box sizes", self.boxes.len(), rank),
            ("element strides", self.steps.len(), rank),
        ] {
            if found != wanted {
                return Err(format!("{found} {name}; rank {rank} takes {wanted}"));
            }
        }
        if !self.address.is_multiple_of(16) {
            return Err(format!(
                "the global address {:#x} is not a multiple of 16",
                self.address
            ));
        }
        let wrong = |values: &mut dyn Iterator<Item = (usize, u64)>, name: &str, rule: &str| {
            values.next().map_or(Ok(()), |(at, value)| {
                Err(format!("{name} {value} of dimension {at}: {rule}"))
            })
        };
        let numbered = |values: &[u64]| values.iter().copied().enumerate().collect::<Vec<_>>();
        wrong(
            &mut (numbered(&self.dims).into_iter()).filter(|&(_, dim)| dim == 0 || dim > 1 << 32),
            "size",
            "a size is 1 to 2^32",
        )?;
        wrong(
            &mut (numbered(&self.strides).into_iter())
                .map(|(at, stride)| (at + 1, stride))
                .filter(|&(_, stride)| stride % 16 != 0 || stride >= 1 << 40),
            "stride",
            "a stride is a multiple of 16 bytes below 2^40",
        )?;
        let wide = |values: &[u32]| {
            values
                .iter()
                .map(|&value| value.into())
                .collect::<Vec<u64>>()
        };
        wrong(
            &mut (numbered(&wide(&self.boxes)).into_iter())
                .filter(|&(_, size)| size == 0 || size > 256),
            "box size",
            "a box spans 1 to 256 elements",
        )?;
        wrong(
            &mut (numbered(&wide(&self.steps)).into_iter())
                .filter(|&(_, step)| step == 0 || step > 8),
            "element stride",
            "an element stride is 1 to 8",
        )?;
        let inner = u64::from(self.boxes[0]) * self.element.bytes();
        if !inner.is_multiple_of(16) {
            return Err(format!(
                "the inner dimension of a box has {inner} bytes, which is not a multiple of 16"
            ));
        }
        if !matches!(self.swizzle, 0 | 32 | 64 | 128) {
            return Err(format!("a swizzle of {} bytes", self.swizzle));
        }
        if self.swizzle != 0 && inner > self.swizzle.into() {
            return Err(format!(
                "the inner dimension of a box has {inner} bytes, more than the {} of its swizzle",
                self.swizzle
            ));
        }
        if self.nan_fill && !self.element.is_float() {
            return Err("elements that are no floats cannot be filled with NaN".into());
        }
        Ok(())
    }
}

/// What the 128 bytes hold: all five dimensions, of which a map uses as many as its rank. A kernel may change one field
/// after the other, so that they need not yet fit together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fields {
    pub address: u64,
    pub element: TensorType,
    /// 1 to 5.
    pub rank: u8,
    /// Bytes.
    pub swizzle: u8,
    pub nan_fill: bool,
    /// Elements of each dimension, less one: 2^32 are the most.
    sizes: [u32; 5],
    pub strides: [u64; 4],
    boxes: [u16; 5],
    steps: [u8; 5],
}

impl Default for Fields {
    /// What 128 bytes of zero are.
    fn default() -> Self {
        Fields {
            address: 0,
            element: TensorType::U8,
            rank: 1,
            swizzle: 0,
            nan_fill: false,
            sizes: [0; 5],
            strides: [0; 4],
            boxes: [0; 5],
            steps: [0; 5],
        }
    }
}

impl Fields {
    /// Sets the elements of a dimension.
    pub(crate) fn set_size(&mut self, at: usize, size: u64) -> Result<(), String> {
        let less_one = size
            .checked_sub(1)
            .and_then(|less| u32::try_from(less).ok());
        self.sizes[at] = less_one
            .ok_or_else(|| format!("size {size} of dimension {at}: a size is 1 to 2^32"))?;
        Ok(())
    }

    /// Sets the elements that a box spans in a dimension.
    pub(crate) fn set_box(&mut self, at: usize, size: u32) -> Result<(), String> {
        let fits = u16::try_from(size);
        self.boxes[at] = fits.map_err(|_| {
            format!("box size {size} of dimension {at}: a box spans 1 to 256 elements")
        })?;
        Ok(())
    }

    /// Sets the steps from one element of a box to the next in a dimension.
    pub(crate) fn set_step(&mut self, at: usize, step: u32) -> Result<(), String> {
        let fits = u8::try_from(step);
        self.steps[at] =
            fits.map_err(|_| format!("element stride {step} of dimension {at}: it is 1 to 8"))?;
        Ok(())
    }

    /// The bytes, with a word before them that says what they are, and a sum at the end.
    pub(crate) fn to_bytes(&self) -> [u8; TENSOR_MAP_BYTES] {
        let mut out = [0; TENSOR_MAP_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&[0; 8]);
        put(&self.address.to_le_bytes());
        put(&[
            self.element as u8,
            self.rank,
            self.swizzle,
            self.nan_fill.into(),
        ]);
        self.sizes.iter().for_each(|size| put(&size.to_le_bytes()));
        self.strides
            .iter()
            .for_each(|stride| put(&stride.to_le_bytes()));
        self.boxes.iter().for_each(|size| put(&size.to_le_bytes()));
        put(&self.steps);
        let sum = checksum(&out);
        out[TENSOR_MAP_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The fields of 128 bytes: of a map that was made here and not changed since, or of zeros, with which a kernel
    /// begins a map of its own.
    pub(crate) fn from_bytes(bytes: &[u8; TENSOR_MAP_BYTES]) -> Result<Fields, String> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(Fields::default());
        }
        let mut at = 0;
        let mut take = |count: usize| {
            let mut word = [0; 8];
            word[..count].copy_from_slice(&bytes[at..at + count]);
            at += count;
            u64::from_le_bytes(word)
        };
        let mut stored = [0; 8];
        stored.copy_from_slice(&bytes[TENSOR_MAP_BYTES - 8..]);
        let foreign =
            || "neither cuTensorMapEncodeTiled nor tensormap.replace made them".to_string();
        let magic = take(8);
        take(8);
        if magic != MAGIC || u64::from_le_bytes(stored) != checksum(bytes) {
            return Err(foreign());
        }
        let address = take(8);
        let element = TensorType::from_number(take(1) as u32).ok_or_else(foreign)?;
        let rank = take(1) as u8;
        if !(1..=5).contains(&rank) {
            return Err(foreign());
        }
        Ok(Fields {
            address,
            element,
            rank,
            swizzle: take(1) as u8,
            nan_fill: take(1) != 0,
            sizes: std::array::from_fn(|_| take(4) as u32),
            strides: std::array::from_fn(|_| take(8)),
            boxes: std::array::from_fn(|_| take(2) as u16),
            steps: std::array::from_fn(|_| take(1) as u8),
        })
    }
}

/// A sum over all but the second word: of that, CUTLASS and Triton clear bit 21 after encoding, to mend what drivers up to
/// 13.1 make of small tensors. Nothing of a map is kept there.
fn checksum(bytes: &[u8; TENSOR_MAP_BYTES]) -> u64 {
    // FNV-1a: any change of a byte changes it
    let summed = bytes[..8].iter().chain(&bytes[16..TENSOR_MAP_BYTES - 8]);
    summed.fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            element: TensorType::F16,
            address: 1 << 40,
            dims: vec![64, 1 << 32, 3, 4, 5],
            strides: vec![128, 256, 512, (1 << 40) - 16],
            boxes: vec![64, 256, 1, 2, 3],
            steps: vec![1, 8, 1, 2, 3],
            swizzle: 128,
            nan_fill: true,
        }
    }

    #[test]
    fn a_map_comes_back_as_it_was() {
        let map = map();
        let mut bytes = map.encode().unwrap();
        assert_eq!(TensorMap::decode(&bytes), Ok(map.clone()));
        bytes[8..16].fill(0xff);
        assert!(TensorMap::decode(&bytes).is_ok(), "what programs change");
        bytes[20] ^= 1;
        let error = TensorMap::decode(&bytes).unwrap_err();
        assert!(error.contains("neither"), "{error}");
    }

    #[test]
    fn the_encoder_names_the_rule_that_is_broken() {
        type Change = fn(&mut TensorMap);
        let cases: [(Change, &str); 14] = [
            (|m| m.address += 8, "not a multiple of 16"),
            (|m| m.dims.clear(), "rank 0"),
            (|m| m.dims.push(1), "rank 6"),
            (|m| m.dims[1] += 1, "1 to 2^32"),
            (|m| m.dims[0] = 0, "1 to 2^32"),
            (|m| m.strides[1] += 8, "stride 264 of dimension 2"),
            (|m| m.strides[3] = 1 << 40, "below 2^40"),
            (|m| m.boxes[1] = 257, "1 to 256"),
            (|m| m.boxes[2] = 0, "1 to 256"),
            (|m| m.steps[4] = 9, "1 to 8"),
            (|m| m.boxes[0] = 4, "8 bytes"),
            (|m| m.swizzle = 64, "more than the 64 of its swizzle"),
            (|m| m.swizzle = 256, "a swizzle of 256"),
            (|m| m.element = TensorType::U16, "NaN"),
        ];
        for (change, words) in cases {
            let mut map = map();
            change(&mut map);
            let error = map.encode().unwrap_err();
            assert!(error.contains(words), "`{error}` lacks `{words}`");
        }
    }
}
