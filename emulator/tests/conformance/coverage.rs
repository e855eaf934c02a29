//! Every row of the emulator's instruction table has a form here, or a case in `tests/pass` or `tests/fail`.

use std::collections::BTreeSet;
use std::path::Path;

/// The mnemonics of `lower/isa.rs`: the strings before an arrow.
fn table() -> BTreeSet<String> {
    let text = include_str!("../../src/lower/isa.rs");
    let rows = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once("=>"));
    rows.flat_map(|(names, _)| {
        names
            .split('|')
            .map(|name| name.trim().trim_matches('"').into())
    })
    .collect()
}

/// The mnemonics that a PTX text executes.
fn executed(ptx: &str) -> impl Iterator<Item = String> {
    ptx.lines()
        .filter(|line| !line.starts_with("//"))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let first = words.next()?;
            let opcode = if first.starts_with('@') {
                words.next()?
            } else {
                first
            };
            Some(opcode.trim_end_matches(';').split('.').next()?.to_string())
        })
}

#[test]
fn every_instruction_has_a_form() {
    let table = table();
    assert!(table.len() > 60, "the table was not understood: {table:?}");
    let mut tested = BTreeSet::new();
    for folder in ["pass", "fail"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join(folder);
        for entry in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            tested.extend(executed(&text));
        }
    }
    for (_, forms) in crate::all() {
        tested.extend(forms.iter().flat_map(|form| {
            let text = form.text();
            executed(&text).collect::<Vec<_>>()
        }));
    }
    // whole products are compared with a host's in `it/matrix` and `it/hopper`, as are maps that a kernel makes
    tested.extend(["mma", "wgmma", "tensormap"].map(String::from));
    let missing: Vec<_> = table.difference(&tested).collect();
    assert!(missing.is_empty(), "no form or case executes {missing:?}");
}
