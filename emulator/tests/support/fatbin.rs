//! Builds fatbins byte by byte, so that tests of the container need no nvcc.

/// How a payload is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Packing {
    /// As it is.
    Plain,
    /// A zstd frame of one raw block.
    Zstd,
    /// One LZ4 block of literals.
    Lz4,
}

/// One entry of a fatbin.
pub(crate) struct Entry<'a> {
    /// 1 PTX, 2 ELF.
    pub(crate) kind: u16,
    /// As 80.
    pub(crate) arch: u32,
    /// 0, or 0x100000 for an `a` target, 0x200000 for an `f` target.
    pub(crate) variant: u64,
    /// How `payload` is stored.
    pub(crate) packing: Packing,
    /// PTX text, or anything for machine code.
    pub(crate) payload: &'a [u8],
}

/// A PTX entry that is stored as it is.
pub(crate) fn ptx(arch: u32, text: &str) -> Entry<'_> {
    Entry {
        kind: 1,
        arch,
        variant: 0,
        packing: Packing::Plain,
        payload: text.as_bytes(),
    }
}

/// The container that holds `entries`, in order.
pub(crate) fn fatbin(entries: &[Entry<'_>]) -> Vec<u8> {
    let body: Vec<u8> = entries.iter().flat_map(bytes).collect();
    let mut image = Vec::new();
    image.extend(0xba55_ed50_u32.to_le_bytes());
    image.extend(1_u16.to_le_bytes());
    image.extend(16_u16.to_le_bytes());
    image.extend((body.len() as u64).to_le_bytes());
    image.extend(body);
    image
}

fn bytes(entry: &Entry<'_>) -> Vec<u8> {
    let text = entry.payload;
    let (packed, flag) = match entry.packing {
        Packing::Plain => (text.to_vec(), 0),
        Packing::Zstd => (zstd(text), 0x8000),
        Packing::Lz4 => (lz4(text), 0x2000),
    };
    let (compressed, uncompressed) = match flag {
        0 => (0, 0),
        _ => (packed.len(), text.len()),
    };
    let mut payload = packed;
    payload.resize(payload.len().next_multiple_of(8), 0);
    let mut header = vec![0; 64];
    header[0..2].copy_from_slice(&entry.kind.to_le_bytes());
    header[2..4].copy_from_slice(&0x101_u16.to_le_bytes());
    header[4..8].copy_from_slice(&64_u32.to_le_bytes());
    header[8..16].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    header[16..20].copy_from_slice(&(compressed as u32).to_le_bytes());
    header[28..32].copy_from_slice(&entry.arch.to_le_bytes());
    header[40..48].copy_from_slice(&(entry.variant | flag).to_le_bytes());
    header[56..64].copy_from_slice(&(uncompressed as u64).to_le_bytes());
    header.extend(payload);
    header
}

/// A zstd frame: magic, a header with a 4-byte content size in a single segment, one raw block.
fn zstd(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend((text.len() as u32).to_le_bytes());
    let block = (text.len() as u32) << 3 | 1; // raw, and the last
    frame.extend(&block.to_le_bytes()[..3]);
    frame.extend(text);
    frame
}

/// An LZ4 block whose only sequence is all literals.
fn lz4(text: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    if text.len() < 15 {
        block.push((text.len() as u8) << 4);
    } else {
        block.push(15 << 4);
        let rest = text.len() - 15;
        block.extend(std::iter::repeat_n(255, rest / 255));
        block.push((rest % 255) as u8);
    }
    block.extend(text);
    block
}
