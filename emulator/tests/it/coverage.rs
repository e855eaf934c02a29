//! Every row of the instruction table has a case.

use std::collections::BTreeSet;

use super::case::Case;

/// The mnemonics of `lower/isa.rs`: the strings before an arrow.
fn table() -> BTreeSet<&'static str> {
    let text = include_str!("../../src/lower/isa.rs");
    let rows = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once("=>"));
    rows.flat_map(|(names, _)| names.split('|').map(|name| name.trim().trim_matches('"')))
        .collect()
}

/// The mnemonics that a PTX text executes.
fn executed(ptx: &str) -> impl Iterator<Item = &str> {
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
            opcode.trim_end_matches(';').split('.').next()
        })
}

#[test]
fn every_instruction_has_a_case() {
    let table = table();
    assert!(table.len() > 60, "the table was not understood: {table:?}");
    let cases = [Case::folder("pass"), Case::folder("fail")].concat();
    let mut tested: BTreeSet<&str> = cases.iter().flat_map(|case| executed(&case.ptx)).collect();
    // whole products are compared with a host's in `matrix` and `hopper`
    tested.extend(["mma", "wgmma"]);
    let missing: Vec<_> = table.difference(&tested).collect();
    assert!(missing.is_empty(), "no case executes {missing:?}");
}
