//! Module images: finds the PTX in what a program hands to `cuModuleLoadData`.
//!
//! An image is PTX text, a fatbin (a container of PTX and machine code for several targets, as
//! nvcc writes it) or a cubin (machine code alone). The emulator runs PTX, so a fatbin must hold
//! some; a cubin cannot be run, and the error says what to build instead.
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
use std::ffi::{CStr, c_char, c_void};

use crate::device::Device;

mod unpack;

use unpack::{lz4, zstd};

const FATBIN_MAGIC: u32 = 0xba55_ed50;
/// First word of the structure that nvcc's host code passes: it points to the fatbin.
const WRAPPER_MAGIC: u32 = 0x4662_43b1;
const ELF_MAGIC: u32 = u32::from_le_bytes(*b"\x7fELF");

const KIND_PTX: u16 = 1;
const KIND_ELF: u16 = 2;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;
/// The `a` targets: PTX for exactly this arch.
const FLAG_ARCH_SPECIFIC: u64 = 0x10_0000;
/// The `f` targets: PTX for this arch and later ones of its family.
const FLAG_FAMILY_SPECIFIC: u64 = 0x20_0000;

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

/// One entry of a fatbin.
#[derive(Clone, Copy)]
struct Entry<'a> {
    kind: u16,
    arch: u32,
    flags: u64,
    compressed: u32,
    uncompressed: u64,
    payload: &'a [u8],
}

impl Entry<'_> {
    /// `compute_90a` for PTX, `sm_90a` for machine code.
    fn target(&self) -> String {
        let kind = if self.kind == KIND_PTX {
            "compute"
        } else {
            "sm"
        };
        let variant = if self.flags & FLAG_ARCH_SPECIFIC != 0 {
            "a"
        } else if self.flags & FLAG_FAMILY_SPECIFIC != 0 {
            "f"
        } else {
            ""
        };
        format!("{kind}_{}{variant}", self.arch)
    }

    /// How well this PTX suits a device; `None` if the device cannot run it.
    fn rank(&self, device: u32) -> Option<(u32, bool)> {
        let specific = self.flags & FLAG_ARCH_SPECIFIC != 0;
        let family = self.flags & FLAG_FAMILY_SPECIFIC != 0;
        let runs = if specific {
            self.arch == device
        } else if family {
            self.arch <= device && self.arch / 10 == device / 10
        } else {
            self.arch <= device
        };
        runs.then_some((self.arch, specific))
    }
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
    let best = (entries.iter())
        .filter(|e| e.kind == KIND_PTX)
        .filter_map(|e| e.rank(arch).map(|rank| (rank, e)))
        // `max_by_key` would take the last of equals; the first is the one a linker put first.
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    let Some((_, entry)) = best else {
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
    let compression = |codec, reason: String| ImageError::Compression { codec, reason };
    let size = || bounded("PTX", entry.uncompressed);
    let compressed = || {
        (entry.payload.get(..entry.compressed as usize)).ok_or(ImageError::Truncated {
            what: "compressed PTX",
            claimed: entry.compressed.into(),
            available: entry.payload.len() as u64,
        })
    };
    let unpacked = if entry.flags & FLAG_ZSTD != 0 {
        zstd(compressed()?, size()?).map_err(|reason| compression("zstd", reason))?
    } else if entry.flags & FLAG_LZ4 != 0 {
        lz4(compressed()?, size()?).map_err(|reason| compression("LZ4", reason))?
    } else {
        return text(entry.payload).map(Cow::Borrowed);
    };
    text(&unpacked).map(|text| Cow::Owned(text.to_owned()))
}

/// All entries of a fatbin, or the reason why its headers cannot be followed.
fn entries(image: &[u8]) -> Result<Vec<Entry<'_>>, ImageError> {
    let truncated = |what, claimed| ImageError::Truncated {
        what,
        claimed,
        available: image.len() as u64,
    };
    let short = || truncated("fatbin", 16);
    let header = half(image, 6).ok_or_else(short)? as usize;
    let size = bounded("fatbin", long(image, 8).ok_or_else(short)?)?;
    let end = header + size;
    let mut rest = (image.get(header..end)).ok_or_else(|| truncated("fatbin", end as u64))?;
    let mut found = Vec::new();
    // Padding after the last entry is too short to hold another header.
    while rest.len() >= 64 {
        // All fields lie in the first 64 bytes, which are there.
        let field = |at| long(rest, at).unwrap_or(0);
        let header = word(rest, 4).unwrap_or(0) as usize;
        let size = bounded("fatbin entry", field(8))?;
        let claimed = header + size;
        if header < 64 || claimed > rest.len() {
            return Err(truncated("fatbin entry", claimed as u64));
        }
        found.push(Entry {
            kind: half(rest, 0).unwrap_or(0),
            arch: word(rest, 28).unwrap_or(0),
            flags: field(40),
            compressed: word(rest, 16).unwrap_or(0),
            uncompressed: field(56),
            payload: &rest[header..claimed],
        });
        rest = &rest[claimed..];
    }
    Ok(found)
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
#[path = "../tests/support/fatbin.rs"]
mod fatbin;

#[cfg(test)]
mod tests {
    use super::fatbin::{Entry as Part, Packing, fatbin, ptx as part};
    use super::*;

    fn pick(image: &[u8], device: &Device) -> Result<String, ImageError> {
        ptx(image, device).map(Cow::into_owned)
    }

    #[test]
    fn text_may_end_in_a_nul_and_begin_with_space() {
        for image in ["\n.version 9.0", "\n.version 9.0\0junk", "\n.version 9.0\0"] {
            assert_eq!(
                pick(image.as_bytes(), &Device::sm_80()).unwrap(),
                "\n.version 9.0"
            );
        }
    }

    #[test]
    fn every_packing_unpacks() {
        let text = format!("// {}\n.version 9.0", "x".repeat(700));
        for packing in [Packing::Plain, Packing::Zstd, Packing::Lz4] {
            let entry = Part {
                packing,
                ..part(80, &text)
            };
            let found = pick(&fatbin(&[entry]), &Device::sm_80());
            assert_eq!(found.as_deref(), Ok(&*text), "{packing:?}");
        }
    }

    #[test]
    fn the_arch_decides_which_ptx_is_taken() {
        const A: u64 = FLAG_ARCH_SPECIFIC;
        const F: u64 = FLAG_FAMILY_SPECIFIC;
        type Entries = &'static [(u32, u64)];
        #[rustfmt::skip]
        let cases: &[(&str, Entries, &str, &str)] = &[
            ("a variant of the arch wins",  &[(80, 0), (90, 0), (90, A)], ".80.0", ".90.a"),
            ("no variant of another arch",  &[(80, 0), (86, A)],          ".80.0", ".80.0"),
            ("the highest below",           &[(75, 0), (70, 0)],          ".75.0", ".75.0"),
            ("order does not matter",       &[(90, A), (80, 0), (75, 0)], ".80.0", ".90.a"),
            ("family up to the device",     &[(75, 0), (80, F)],          ".80.f", ".75.0"),
            ("too new is passed over",      &[(100, 0), (80, 0)],         ".80.0", ".80.0"),
        ];
        for (case, entries, on_80, on_90) in cases {
            let texts: Vec<String> = (entries.iter())
                .map(|(arch, v)| {
                    let variant = if *v == A {
                        "a"
                    } else if *v == F {
                        "f"
                    } else {
                        "0"
                    };
                    format!(".{arch}.{variant}")
                })
                .collect();
            let parts: Vec<Part<'_>> = (entries.iter().zip(&texts))
                .map(|((arch, variant), text)| Part {
                    variant: *variant,
                    ..part(*arch, text)
                })
                .collect();
            let image = fatbin(&parts);
            assert_eq!(
                pick(&image, &Device::sm_80()).unwrap(),
                *on_80,
                "{case}, sm_80"
            );
            assert_eq!(
                pick(&image, &Device::sm_90()).unwrap(),
                *on_90,
                "{case}, sm_90"
            );
        }
    }

    #[test]
    fn images_that_cannot_run_say_what_to_build() {
        let sass = |arch, variant| Part {
            kind: KIND_ELF,
            variant,
            ..part(arch, "code")
        };
        let cubin = |abi: u8, flags: u32| {
            let mut header = b"\x7fELF\x02\x01\x01\x41".to_vec();
            header.push(abi);
            header.resize(48, 0);
            header.extend(flags.to_le_bytes());
            header
        };
        let hopper = part(90, ".version 9.0");
        #[rustfmt::skip]
        let cases: &[(Vec<u8>, &str)] = &[
            (fatbin(&[sass(80, 0), sass(90, FLAG_ARCH_SPECIFIC)]), "only SASS for sm_80, sm_90a"),
            (fatbin(&[sass(80, 0)]), "code=compute_80"),
            (fatbin(&[]), "only SASS for no target"),
            (fatbin(&[hopper, sass(80, 0)]), "PTX for compute_90, which a device of sm_80 cannot"),
            (cubin(8, 0x0600_5a04), "only SASS for sm_90"),
            (cubin(7, 0x0050_0550), "only SASS for sm_80"),
            (b"MZ\x90\0".to_vec(), "no module image (it begins with [4d, 5a, 90])"),
            (b"\n \0".to_vec(), "image is empty"),
            (vec![], "image is empty"),
            (b".version \xff".to_vec(), "not UTF-8 at byte 9"),
        ];
        for (image, expected) in cases {
            let error = pick(image, &Device::sm_80()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }

    #[test]
    fn damaged_fatbins_are_refused() {
        let whole = fatbin(&[Part {
            packing: Packing::Zstd,
            ..part(80, ".version 9.0")
        }]);
        for len in 4..whole.len() {
            assert!(
                pick(&whole[..len], &Device::sm_80()).is_err(),
                "cut at {len}"
            );
        }
        for (at, name) in [
            (16 + 4, "header size"),
            (16 + 8, "size"),
            (16 + 16, "compressed size"),
        ] {
            let mut image = whole.clone();
            image[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            let error = pick(&image, &Device::sm_80()).unwrap_err();
            assert!(
                matches!(error, ImageError::Truncated { .. }),
                "{name}: {error}"
            );
        }
        let mut image = whole.clone();
        image[16 + 56] += 1;
        let error = pick(&image, &Device::sm_80()).unwrap_err().to_string();
        assert!(error.contains("12 bytes instead of 13"), "{error}");
    }

    #[test]
    fn a_pointer_is_measured_by_what_it_points_to() {
        let binary = fatbin(&[part(80, ".version 9.0")]);
        let mut wrapper = WRAPPER_MAGIC.to_le_bytes().to_vec();
        wrapper.extend(1_u32.to_le_bytes());
        wrapper.extend((binary.as_ptr() as usize).to_le_bytes());
        let mut cubin = b"\x7fELF".to_vec();
        cubin.resize(64, 1);
        let text = b".version 9.0\0junk";
        for (image, expected) in [
            (&text[..], &text[..12]),
            (b"P\0", b"P"), // shares its first byte with the magic of a fatbin
            (&binary[..], &binary[..]),
            (&wrapper[..], &binary[..]),
            (&cubin[..], &cubin[..]),
        ] {
            // SAFETY: each is a whole image of its kind, and outlives the borrow.
            let found = unsafe { at(image.as_ptr().cast()) };
            assert_eq!(found, Ok(expected));
        }
        // SAFETY: null is allowed.
        assert_eq!(unsafe { at(std::ptr::null()) }, Err(ImageError::Empty));
    }
}
