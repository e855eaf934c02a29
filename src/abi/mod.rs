//! The table of kernels and their parameter structs, read twice.
//!
//! The crate uses it to plan and launch; build.rs compiles this same file, by path, to write the
//! CUDA stubs. It therefore uses nothing but std.

pub mod attention;
pub mod causal_conv1d;
pub mod gated_attention_unit;
pub mod gemm;
pub mod linear_attention;
pub mod lru;
pub mod rwkv4;
pub mod rwkv7;
pub mod selective_scan;
pub mod ssd;

/// A type of tensor elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE half precision, 16 bits.
    F16,
    /// bfloat16, 16 bits.
    BF16,
    /// IEEE single precision, 32 bits.
    F32,
    /// Signed integer, 32 bits.
    I32,
    /// Unsigned integer, 8 bits.
    U8,
}

impl Dtype {
    /// Every type that a tensor can hold.
    pub const ALL: [Self; 5] = [Self::F16, Self::BF16, Self::F32, Self::I32, Self::U8];

    /// The name in kernel symbols and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::I32 => "i32",
            Self::U8 => "u8",
        }
    }

    /// The type in CUDA C++.
    pub const fn cpp(self) -> &'static str {
        match self {
            Self::F16 => "__half",
            Self::BF16 => "__nv_bfloat16",
            Self::F32 => "float",
            Self::I32 => "int",
            Self::U8 => "unsigned char",
        }
    }

    /// The number by which kernels that choose a type when they run know it: that of f32 for all but two.
    pub const fn number(self) -> i32 {
        match self {
            Self::F16 => 0,
            Self::BF16 => 1,
            _ => 2,
        }
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::U8 => 1,
        }
    }
}

/// One kernel: what the stub instantiates and asserts, and what a launch needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The symbol, as a profiler shows it.
    pub name: String,
    /// The C++ type whose `run` is the kernel's body.
    pub instance: String,
    /// The parameter struct.
    pub params: Params,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that have to fit on a multiprocessor together, at least 1: they limit the registers of a thread. Without
    /// such a number the compiler may spill registers to fit one block more.
    pub blocks: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: usize,
}

/// A file that nvcc compiles to one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// The image's name.
    pub name: String,
    /// The header to include, relative to `kernels/`.
    pub header: &'static str,
    /// The kernels in it.
    pub entries: Vec<Entry>,
}

/// All units of all operations.
pub fn units() -> Vec<Unit> {
    let mut units = attention::units();
    units.extend(causal_conv1d::units());
    units.extend(gated_attention_unit::units());
    units.extend(gemm::units());
    units.extend(linear_attention::units());
    units.extend(lru::units());
    units.extend(rwkv4::units());
    units.extend(rwkv7::units());
    units.extend(selective_scan::units());
    units.extend(ssd::units());
    units
}

/// Where C++ must find the fields of a parameter struct.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// The C++ type.
    pub cpp: &'static str,
    /// `sizeof` that type.
    pub bytes: usize,
    /// Name and offset of each field.
    pub fields: &'static [(&'static str, usize)],
    /// The structs that fields are made of.
    pub parts: &'static [Params],
}

/// Declares a parameter struct that Rust and C++ share, and its [`Params`].
macro_rules! params {
    (
        $(#[$meta:meta])*
        pub struct $name:ident as $cpp:literal $(with [$($part:ident),*])? {
            $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $name {
            /// Size and field offsets, for the stub to assert.
            pub const PARAMS: $crate::abi::Params = $crate::abi::Params {
                cpp: $cpp,
                bytes: size_of::<Self>(),
                fields: &[$((stringify!($field), std::mem::offset_of!(Self, $field)),)*],
                parts: &[$($($part::PARAMS),*)?],
            };
        }
    };
}
use params;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn symbols_and_images_have_names_of_their_own() {
        let units = units();
        let images: HashSet<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
        assert_eq!(images.len(), units.len());
        let entries: Vec<&Entry> = units.iter().flat_map(|unit| &unit.entries).collect();
        let symbols: HashSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(symbols.len(), entries.len());
        for symbol in symbols {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(symbol.chars().all(plain), "{symbol}");
        }
    }

    #[test]
    fn parameters_have_no_holes_and_fit_a_launch() {
        for entry in units().iter().flat_map(|unit| &unit.entries) {
            let params = entry.params;
            assert!(
                params.bytes <= 4096,
                "{}: what every driver takes",
                params.cpp
            );
            for structure in params.parts.iter().chain([&params]) {
                assert_eq!(structure.fields.first().map(|field| field.1), Some(0));
                for pair in structure.fields.windows(2) {
                    let bytes = pair[1].1 - pair[0].1;
                    let part = params.parts.iter().any(|part| part.bytes == bytes);
                    let whole = bytes == 4 || bytes == 8 || part;
                    assert!(whole, "a hole after {}", pair[0].0);
                }
            }
        }
    }
}
