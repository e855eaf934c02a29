//! Module images: finds the PTX in what a program hands to `cuModuleLoadData`.
//!
//! An image is PTX text, a fatbin (a container of PTX and machine code for several targets, as
//! nvcc writes it) or a cubin (machine code alone). The emulator runs PTX, so a fatbin must hold
//! some; a cubin cannot be run, and the error says what to build instead. Beside PTX, machine code
//! tells how many registers its kernels take.
//!
//! NVIDIA does not document the container. The layout here was inferred from what nvcc 13 writes:
//!
//! | container | bytes | | entry | bytes |
//! |---|---|---|---|---|
//! | magic 0xba55ed50 | 0..4 | | kind: 1 PTX, 2 ELF | 0..2 |
//! | version | 4..6 | | header size | 4..8 |
//! | header size, 16 | 6..8 | | payload size, with padding | 8..16 |
//! | size of all entries | 8..16 | | compressed size | 16..20 |
//! | | | | arch, as 80 | 28..32 |
//! | | | | flags | 40..48 |
//! | | | | uncompressed size | 56..64 |

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

use crate::device::Device;

mod container;
mod cubin;
mod unpack;

use container::{Entry, KIND_ELF, KIND_PTX, entries};

const FATBIN_MAGIC: u32 = 0xba55_ed50;
/// First word of the structure that nvcc's host code passes: it points to the fatbin.
const WRAPPER_MAGIC: u32 = 0x4662_43b1;
const ELF_MAGIC: u32 = u32::from_le_bytes(*b"\x7fELF");

/// No PTX grows to this size; a header that claims more is damaged.
const MAX_BYTES: u64 = 1 << 30;

/// Why no PTX could be had from an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The pointer was null or the image had no bytes.
    #[error("the module image is empty")]
    Empty,
    /// Neither PTX text, fatbin nor cubin.
    #[error(
        "this is no module image (it begins with {start:02x?}): expected PTX text, a fatbin or a cubin"
    )]
    Unrecognised {
        /// The first bytes of the image.
        start: Vec<u8>,
    },
    /// PTX text that is not UTF-8.
    #[error("the PTX is not UTF-8 at byte {at}")]
    NotText {
        /// Offset of the first bad byte.
        at: usize,
    },
    /// A header points past the end of the image, or gives a size that cannot be.
    #[error("the {what} is damaged: it claims {claimed} bytes where there are {available}")]
    Truncated {
        /// The part that is damaged.
        what: &'static str,
        /// Bytes that its header claims.
        claimed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// Machine code only, for the targets named.
    #[error(
        "this image has only SASS for {targets}, and the emulator runs PTX: \
         build with code=compute_{arch} (or -fatbin -arch=compute_{arch}) so that it holds PTX"
    )]
    OnlySass {
        /// The targets, as `sm_80, sm_90a`.
        targets: String,
        /// Arch of the emulated device.
        arch: u32,
    },
    /// PTX, but for devices that are newer than, or other than, the emulated one.
    #[error(
        "this image has PTX for {targets}, which a device of sm_{arch} cannot run: \
         build with code=compute_{arch} or lower"
    )]
    OtherTargets {
        /// The targets, as `compute_90a`.
        targets: String,
        /// Arch of the emulated device.
        arch: u32,
    },
    /// A payload that does not decompress.
    #[error("the {codec}-compressed PTX does not decompress: {reason}")]
    Compression {
        /// `zstd` or `LZ4`.
        codec: &'static str,
        /// What the decoder found.
        reason: String,
    },
}

impl ImageError {
    /// Whether the image is sound but has nothing for the emulated device
    /// (`CUDA_ERROR_NO_BINARY_FOR_GPU`, not `CUDA_ERROR_INVALID_IMAGE`).
    pub fn is_other_target(&self) -> bool {
        matches!(self, Self::OnlySass { .. } | Self::OtherTargets { .. })
    }
}

/// The PTX text in an image, for the arch that `device` poses as.
///
/// Text may end in a NUL. Of a fatbin's PTX the arch-specific variant of the very arch is taken
/// (`compute_90a` on sm_90), else the highest arch that is not above the device's.
///
/// # Errors
/// [`ImageError`] if the image is damaged or holds no PTX that the device can run.
pub fn ptx<'a>(image: &'a [u8], device: &Device) -> Result<Cow<'a, str>, ImageError> {
    match word(image, 0) {
        Some(FATBIN_MAGIC) => from_fatbin(image, device),
        Some(ELF_MAGIC) => Err(ImageError::OnlySass {
            targets: format!("sm_{}", cubin_arch(image)),
            arch: device.arch(),
        }),
        _ => text(image).map(Cow::Borrowed),
    }
}

/// The bytes of the image at a pointer; the length comes from the image itself.
///
/// # Errors
/// [`ImageError::Empty`] for a null pointer, [`ImageError::Truncated`] for a header that claims
/// an impossible size.
///
/// # Safety
/// `pointer` is null or points to NUL-terminated text, a whole fatbin, a whole cubin, or a fatbin
/// wrapper whose data pointer is valid; all of it stays unchanged for `'a`.
pub(crate) unsafe fn at<'a>(pointer: *const c_void) -> Result<&'a [u8], ImageError> {
    if pointer.is_null() {
        return Err(ImageError::Empty);
    }
    let start = pointer.cast::<u8>();
    // Text may be shorter than a header: read on only while the magic matches, byte by byte.
    let magic = |magic: u32| {
        (magic.to_le_bytes().into_iter().enumerate())
            // SAFETY: the bytes before this one equal the magic's, which has no NUL, so neither
            // text nor header has ended (this function's contract).
            .all(|(i, byte)| unsafe { start.add(i).read() } == byte)
    };
    let len = if magic(WRAPPER_MAGIC) {
        // SAFETY: a wrapper is two u32 and then the data pointer (this function's contract).
        let data = unsafe { start.add(8).cast::<*const c_void>().read_unaligned() };
        if data == pointer {
            return Err(ImageError::Empty);
        }
        // SAFETY: the contract asks the same of the wrapper's data.
        return unsafe { at(data) };
    } else if magic(FATBIN_MAGIC) {
        // SAFETY: the magic says that a fatbin's header of 16 bytes is here.
        let header = unsafe { std::slice::from_raw_parts(start, 16) };
        let claimed = half(header, 6).unwrap_or(0) as u64 + long(header, 8).unwrap_or(0);
        bounded("fatbin", claimed)?
    } else if magic(ELF_MAGIC) {
        64 // its header is all that is ever read of a cubin
    } else {
        // SAFETY: what is none of the above is text that ends in a NUL (this function's contract).
        unsafe { CStr::from_ptr(start.cast::<c_char>()) }
            .to_bytes()
            .len()
    };
    if len == 0 {
        return Err(ImageError::Empty);
    }
    // SAFETY: `len` is the size that the image's own header gives, or the text's length.
    Ok(unsafe { std::slice::from_raw_parts(start, len) })
}

/// PTX text up to its NUL, if it has one.
fn text(image: &[u8]) -> Result<&str, ImageError> {
    let end = image.iter().position(|&b| b == 0).unwrap_or(image.len());
    let image = &image[..end];
    let Some(&first) = image.iter().find(|b| !b.is_ascii_whitespace()) else {
        return Err(ImageError::Empty);
    };
    // PTX begins with a directive or a comment.
    if first != b'.' && first != b'/' {
        let start = image[..image.len().min(8)].to_vec();
        return Err(ImageError::Unrecognised { start });
    }
    std::str::from_utf8(image).map_err(|e| ImageError::NotText {
        at: e.valid_up_to(),
    })
}

/// Of the entries of a kind, the one that suits the device best.
fn best<'a>(entries: &[Entry<'a>], kind: u16, arch: u32) -> Option<Entry<'a>> {
    let ranked = (entries.iter())
        .filter(|entry| entry.kind == kind)
        .filter_map(|entry| entry.rank(arch).map(|rank| (rank, entry)));
    // `max_by_key` would take the last of equals; the first is the one a linker put first.
    let best = ranked.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map(|(_, entry)| *entry)
}

fn from_fatbin<'a>(image: &'a [u8], device: &Device) -> Result<Cow<'a, str>, ImageError> {
    let arch = device.arch();
    let entries = entries(image)?;
    let targets = |kind: u16| {
        let mut names: Vec<String> = (entries.iter())
            .filter(|e| e.kind == kind)
            .map(Entry::target)
            .collect();
        names.dedup();
        names.join(", ")
    };
    let Some(entry) = best(&entries, KIND_PTX, arch) else {
        return Err(if entries.iter().any(|e| e.kind == KIND_PTX) {
            let targets = targets(KIND_PTX);
            ImageError::OtherTargets { targets, arch }
        } else {
            let targets = match targets(KIND_ELF) {
                none if none.is_empty() => "no target".to_owned(),
                some => some,
            };
            ImageError::OnlySass { targets, arch }
        });
    };
    match entry.unpacked()? {
        Cow::Borrowed(bytes) => text(bytes).map(Cow::Borrowed),
        Cow::Owned(bytes) => text(&bytes).map(|text| Cow::Owned(text.to_owned())),
    }
}

/// A fatbin's machine code for a device, packed as it came: it is unpacked when somebody asks for what it says.
#[derive(Debug, Clone)]
pub(crate) struct MachineCode(Box<[u8]>);

impl MachineCode {
    /// Of an image, that which the device would run; `None` if there is none.
    pub(crate) fn find(image: &[u8], device: &Device) -> Option<MachineCode> {
        if word(image, 0) != Some(FATBIN_MAGIC) {
            return None;
        }
        let entry = best(&entries(image).ok()?, KIND_ELF, device.arch())?;
        Some(MachineCode(entry.whole.into()))
    }

    /// The 32-bit registers of a thread, of each function.
    pub(crate) fn registers(&self) -> BTreeMap<String, u32> {
        let unpacked = Entry::first(&self.0).and_then(|entry| match entry.unpacked()? {
            Cow::Borrowed(bytes) => Ok(cubin::registers(bytes)),
            Cow::Owned(bytes) => Ok(cubin::registers(&bytes)),
        });
        // Its PTX runs all the same.
        unpacked.unwrap_or_default()
    }
}

/// The 32-bit registers that ptxas gave a thread of each kernel, from the machine code in an image that `device` would
/// run. Empty if the image has none: text and PTX alone do not tell.
///
/// ```
/// use cuda_emulator::{Device, registers};
///
/// let registers = registers(b".version 8.0", &Device::sm_80());
/// assert!(registers.is_empty(), "text has no machine code");
/// ```
pub fn registers(image: &[u8], device: &Device) -> BTreeMap<String, u32> {
    MachineCode::find(image, device).map_or_else(BTreeMap::new, |code| code.registers())
}

/// A size from a header as a `usize`, if it can be one.
fn bounded(what: &'static str, claimed: u64) -> Result<usize, ImageError> {
    (usize::try_from(claimed).ok())
        .filter(|_| claimed <= MAX_BYTES)
        .ok_or(ImageError::Truncated {
            what,
            claimed,
            available: MAX_BYTES,
        })
}

/// The arch of a cubin, as 80. Its place in the ELF flags moved with ABI version 8 (CUDA 13).
fn cubin_arch(image: &[u8]) -> u32 {
    let flags = word(image, 48).unwrap_or(0);
    let shift = if image.get(8).is_some_and(|&v| v >= 8) {
        8
    } else {
        0
    };
    (flags >> shift) & 0xff
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u16::from_le_bytes(*b))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u32::from_le_bytes(*b))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
#[path = "../tests/support/cubin.rs"]
mod cubins;
#[cfg(test)]
#[path = "../tests/support/fatbin.rs"]
mod fatbin;
#[cfg(test)]
mod tests;
