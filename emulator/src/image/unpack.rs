//! Decompression of what a fatbin holds. Each function checks the size that the container claims.

use std::io::Read;

/// Unpacks a zstd frame that holds `size` bytes.
pub(super) fn zstd(payload: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    ruzstd::decoding::StreamingDecoder::new(payload)
        .map_err(|e| e.to_string())?
        .take(size as u64)
        .read_to_end(&mut unpacked)
        .map_err(|e| e.to_string())?;
    check_size(unpacked, size)
}

/// Unpacks a block of the LZ4 format that holds `size` bytes: sequences of literals and of matches that
/// copy from what was already written.
pub(super) fn lz4(payload: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut input = payload.iter().copied();
    let mut next = || input.next().ok_or_else(|| "it ends early".to_owned());
    // A length of 15 goes on in bytes that are added up until one is below 255.
    let length = |nibble: u8, next: &mut dyn FnMut() -> Result<u8, String>| {
        let mut total = usize::from(nibble);
        let mut more = nibble == 15;
        while more {
            let byte = next()?;
            total += usize::from(byte);
            more = byte == 255;
        }
        Ok::<usize, String>(total)
    };
    let mut out: Vec<u8> = Vec::new();
    loop {
        let token = next()?;
        for _ in 0..length(token >> 4, &mut next)? {
            out.push(next()?);
        }
        // The last sequence has literals only.
        if out.len() >= size {
            break;
        }
        let offset = usize::from(u16::from_le_bytes([next()?, next()?]));
        let matched = length(token & 15, &mut next)? + 4;
        if offset == 0 || offset > out.len() || out.len() + matched > size {
            return Err(format!(
                "a match reaches {offset} bytes back from byte {}",
                out.len()
            ));
        }
        for _ in 0..matched {
            out.push(out[out.len() - offset]); // a match may overlap what it writes
        }
    }
    check_size(out, size)
}

fn check_size(unpacked: Vec<u8>, size: usize) -> Result<Vec<u8>, String> {
    if unpacked.len() == size {
        Ok(unpacked)
    } else {
        Err(format!("{} bytes instead of {size}", unpacked.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lz4_matches_may_overlap() {
        // "ab", then a match of 6 from 2 bytes back, then 5 literals.
        let block = [0x22, b'a', b'b', 2, 0, 0x50, b'c', b'd', b'e', b'f', b'g'];
        assert_eq!(lz4(&block, 13).unwrap(), b"ababababcdefg");
        assert!(lz4(&block, 14).is_err());
        assert!(
            lz4(&[0x10, b'a', 2, 0, 0], 10)
                .unwrap_err()
                .contains("2 bytes back from byte 1")
        );
        assert!(lz4(&block[..4], 13).unwrap_err().contains("ends early"));
    }
}
