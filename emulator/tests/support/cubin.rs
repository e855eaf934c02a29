//! Builds cubins byte by byte: ELF files of machine code that is none, which say how many registers kernels take.

/// A cubin of functions with their registers: a section of names, symbols, and attributes.
pub(crate) fn cubin(arch: u32, functions: &[(&str, u32)]) -> Vec<u8> {
    const SECTIONS: [&str; 4] = ["", ".strtab", ".symtab", ".nv.info"];
    let mut names = Vec::new();
    let mut name = |text: &str| {
        let at = names.len() as u32;
        names.extend(text.bytes().chain([0]));
        at
    };
    let section_names = SECTIONS.map(&mut name);
    let mut symbols = vec![0; 24]; // the first symbol is none
    let mut info = vec![3, 0x1b, 0xff, 0]; // an attribute of another format comes first
    for ((function, registers), symbol) in functions.iter().zip(1_u32..) {
        let mut entry = name(function).to_le_bytes().to_vec();
        entry.resize(24, 0);
        symbols.extend(entry);
        for (attribute, value) in [(0x11, 0), (0x2f, *registers)] {
            info.extend([4, attribute, 8, 0]);
            info.extend(symbol.to_le_bytes());
            info.extend(value.to_le_bytes());
        }
    }
    let mut file = b"\x7fELF\x02\x01\x01\x41\x08".to_vec();
    file.resize(64, 0);
    let mut headers = vec![0; 64];
    let links = [0_u32, 1, 2];
    for ((bytes, link), name) in [names, symbols, info]
        .iter()
        .zip(links)
        .zip(&section_names[1..])
    {
        let mut header = vec![0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        header[40..44].copy_from_slice(&link.to_le_bytes());
        headers.extend(header);
        file.extend(bytes);
    }
    let start = file.len() as u64;
    file[40..48].copy_from_slice(&start.to_le_bytes());
    file[48..52].copy_from_slice(&(arch << 8).to_le_bytes());
    file[58..60].copy_from_slice(&64_u16.to_le_bytes());
    file[60..62].copy_from_slice(&(SECTIONS.len() as u16).to_le_bytes());
    file[62..64].copy_from_slice(&1_u16.to_le_bytes());
    file.extend(headers);
    file
}
