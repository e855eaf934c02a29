//! What a cubin says of its kernels. Its code cannot be run here, but it knows what PTX does not: the registers that
//! ptxas gave each kernel.
//!
//! A cubin is an ELF file. Its section `.nv.info` is a list of attributes, which NVIDIA does not document; the layout
//! here is what nvcc 13 writes and `cuobjdump -elf` prints. An attribute begins with its format and its number, a byte
//! each. Format 4 has a length of two bytes and as many bytes; every other format has two bytes of value.

use std::collections::BTreeMap;

use super::{half, long, word};

/// `EIFMT_SVAL`: a length and as many bytes.
const SIZED: u8 = 4;
/// `EIATTR_REGCOUNT`: the index of a function's symbol, and its registers.
const REGISTER_COUNT: u8 = 0x2f;

/// The 32-bit registers of a thread, of each function of a cubin. What cannot be read is left out.
pub(super) fn registers(cubin: &[u8]) -> BTreeMap<String, u32> {
    let Some(elf) = Elf::new(cubin) else {
        return BTreeMap::new();
    };
    let Some((info, symbols)) = elf.info() else {
        return BTreeMap::new();
    };
    counts(info)
        .filter_map(|(symbol, count)| Some((elf.symbol(symbols, symbol)?, count)))
        .collect()
}

/// Symbols and registers in the bytes of `.nv.info`.
fn counts(mut info: &[u8]) -> impl Iterator<Item = (u32, u32)> {
    std::iter::from_fn(move || {
        while let [format, attribute, rest @ ..] = info {
            let value = half(rest, 0)?;
            let bytes = if *format == SIZED { value.into() } else { 0 };
            let payload = rest.get(2..2 + bytes)?;
            info = rest.get(2 + bytes..)?;
            if (*format, *attribute) == (SIZED, REGISTER_COUNT) {
                return Some((word(payload, 0)?, word(payload, 4)?));
            }
        }
        None
    })
}

/// An ELF file of 64 bits, little-endian.
struct Elf<'a> {
    file: &'a [u8],
    sections: &'a [u8],
    /// The names of sections.
    names: &'a [u8],
}

/// Bytes of a section's header.
const SECTION: usize = 64;
/// Bytes of a symbol.
const SYMBOL: usize = 24;

impl<'a> Elf<'a> {
    fn new(file: &'a [u8]) -> Option<Elf<'a>> {
        let start = usize::try_from(long(file, 40)?).ok()?;
        let (size, count) = (half(file, 58)?, half(file, 60)?);
        if usize::from(size) != SECTION {
            return None;
        }
        let end = start.checked_add(SECTION * usize::from(count))?;
        let mut elf = Elf {
            file,
            sections: file.get(start..end)?,
            names: &[],
        };
        elf.names = elf.bytes(elf.section(half(file, 62)?.into())?)?;
        Some(elf)
    }

    fn section(&self, index: usize) -> Option<&'a [u8]> {
        self.sections.chunks_exact(SECTION).nth(index)
    }

    fn bytes(&self, section: &[u8]) -> Option<&'a [u8]> {
        let start = usize::try_from(long(section, 24)?).ok()?;
        let size = usize::try_from(long(section, 32)?).ok()?;
        self.file.get(start..start.checked_add(size)?)
    }

    /// The attributes of the file, and the header of the symbols that they name.
    fn info(&self) -> Option<(&'a [u8], &'a [u8])> {
        let mut sections = self.sections.chunks_exact(SECTION);
        let found = sections.find(|section| {
            word(section, 0).and_then(|at| text(self.names, at)) == Some(".nv.info")
        })?;
        let symbols = self.section(word(found, 40)? as usize)?;
        Some((self.bytes(found)?, symbols))
    }

    fn symbol(&self, symbols: &[u8], index: u32) -> Option<String> {
        let names = self.bytes(self.section(word(symbols, 40)? as usize)?)?;
        let table = self.bytes(symbols)?;
        let symbol = table.chunks_exact(SYMBOL).nth(index as usize)?;
        text(names, word(symbol, 0)?).map(str::to_owned)
    }
}

/// The text at an offset, up to its NUL.
fn text(table: &[u8], at: u32) -> Option<&str> {
    let bytes = table.get(at as usize..)?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&bytes[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::super::cubins::cubin;
    use super::*;

    #[test]
    fn the_registers_of_each_function_are_read() {
        let image = cubin(80, &[("walk", 255), ("step", 24)]);
        let expected = [("step".to_owned(), 24), ("walk".to_owned(), 255)];
        assert_eq!(registers(&image), BTreeMap::from(expected));
    }

    #[test]
    fn damage_leaves_functions_out() {
        let image = cubin(80, &[("walk", 255)]);
        for len in 0..image.len() {
            assert!(registers(&image[..len]).is_empty(), "cut at {len}");
        }
        for at in 0..image.len() {
            let mut image = image.clone();
            image[at] = 0xff;
            assert!(registers(&image).len() <= 1, "byte {at}");
        }
    }
}
