//! The entries of a fatbin: what each is for, and its bytes unpacked.

use std::borrow::Cow;

use super::unpack::{lz4, zstd};
use super::{ImageError, bounded, half, long, word};

/// PTX, as text.
pub(super) const KIND_PTX: u16 = 1;
/// Machine code: a cubin.
pub(super) const KIND_ELF: u16 = 2;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;
/// The `a` targets: PTX for exactly this arch.
pub(super) const FLAG_ARCH_SPECIFIC: u64 = 0x10_0000;
/// The `f` targets: PTX for this arch and later ones of its family.
pub(super) const FLAG_FAMILY_SPECIFIC: u64 = 0x20_0000;

/// One entry of a fatbin.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) kind: u16,
    arch: u32,
    flags: u64,
    compressed: u32,
    uncompressed: u64,
    payload: &'a [u8],
    /// Header and payload.
    pub(super) whole: &'a [u8],
}

/// Bytes of an entry's header that have a known meaning.
const HEADER: usize = 64;

impl<'a> Entry<'a> {
    /// The entry at the beginning of some bytes.
    ///
    /// # Errors
    /// The header is cut short, or claims more bytes than there are.
    pub(super) fn first(bytes: &'a [u8]) -> Result<Entry<'a>, ImageError> {
        let field = |at| long(bytes, at).unwrap_or(0);
        let header = word(bytes, 4).unwrap_or(0) as usize;
        let claimed = header + bounded("fatbin entry", field(8))?;
        if header < HEADER || claimed > bytes.len() {
            return Err(ImageError::Truncated {
                what: "fatbin entry",
                claimed: claimed as u64,
                available: bytes.len() as u64,
            });
        }
        Ok(Entry {
            kind: half(bytes, 0).unwrap_or(0),
            arch: word(bytes, 28).unwrap_or(0),
            flags: field(40),
            compressed: word(bytes, 16).unwrap_or(0),
            uncompressed: field(56),
            payload: &bytes[header..claimed],
            whole: &bytes[..claimed],
        })
    }

    /// `compute_90a` for PTX, `sm_90a` for machine code.
    pub(super) fn target(&self) -> String {
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

    /// How well this suits a device; `None` if the device cannot run it. PTX runs on what is newer, machine code only
    /// on what has the same major number.
    pub(super) fn rank(&self, device: u32) -> Option<(u32, bool)> {
        let specific = self.flags & FLAG_ARCH_SPECIFIC != 0;
        let family = self.flags & FLAG_FAMILY_SPECIFIC != 0;
        let runs = if specific {
            self.arch == device
        } else if family || self.kind == KIND_ELF {
            self.arch <= device && self.arch / 10 == device / 10
        } else {
            self.arch <= device
        };
        runs.then_some((self.arch, specific))
    }

    /// The payload without padding, as it was before it was compressed.
    ///
    /// # Errors
    /// The sizes that the header gives are not those of the payload.
    pub(super) fn unpacked(&self) -> Result<Cow<'a, [u8]>, ImageError> {
        let compression = |codec, reason: String| ImageError::Compression { codec, reason };
        let size = || bounded("payload", self.uncompressed);
        let compressed = || {
            (self.payload.get(..self.compressed as usize)).ok_or(ImageError::Truncated {
                what: "compressed payload",
                claimed: self.compressed.into(),
                available: self.payload.len() as u64,
            })
        };
        if self.flags & FLAG_ZSTD != 0 {
            let bytes = zstd(compressed()?, size()?);
            bytes
                .map(Cow::Owned)
                .map_err(|reason| compression("zstd", reason))
        } else if self.flags & FLAG_LZ4 != 0 {
            let bytes = lz4(compressed()?, size()?);
            bytes
                .map(Cow::Owned)
                .map_err(|reason| compression("LZ4", reason))
        } else {
            Ok(Cow::Borrowed(self.payload))
        }
    }
}

/// All entries of a fatbin, or the reason why its headers cannot be followed.
pub(super) fn entries(image: &[u8]) -> Result<Vec<Entry<'_>>, ImageError> {
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
    while rest.len() >= HEADER {
        let entry = Entry::first(rest)?;
        found.push(entry);
        rest = &rest[entry.whole.len()..];
    }
    Ok(found)
}
