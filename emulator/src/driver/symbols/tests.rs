//! Tests of the list of functions: complete, documented, and none that nulls and zeros bring down.

use std::collections::BTreeSet;

use super::*;

/// The names in the calls of `load` in `src/driver/sys/mod.rs` of that release, sorted.
const CUDARC: &str = include_str!("../../../tests/support/cudarc-0.19.10-symbols.txt");

#[test]
fn every_symbol_of_cudarc_is_listed_once() {
    let ours: BTreeSet<&str> = ALL.iter().map(|(name, ..)| *name).collect();
    let missing: Vec<&str> = CUDARC.lines().filter(|name| !ours.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(ours.len(), ALL.len());
    assert!(CUDARC.lines().count() > 500);
}

#[test]
fn a_plain_name_means_the_variant_of_the_callers_version() {
    #[rustfmt::skip]
    let cases = [
        ("cuInit", 12_000, Some("cuInit")),
        ("cuMemAlloc", 4_000, Some("cuMemAlloc_v2")),
        ("cuMemAlloc_v2", 4_000, Some("cuMemAlloc_v2")),
        ("cuCtxCreate", 11_000, Some("cuCtxCreate_v2")),
        ("cuCtxCreate", 11_080, Some("cuCtxCreate_v3")),
        ("cuCtxCreate", 13_000, Some("cuCtxCreate_v4")),
        ("cuEventElapsedTime", 12_000, Some("cuEventElapsedTime")),
        ("cuLaunchHostFunc", 13_000, Some("cuLaunchHostFunc")),
        ("cuNothing", 13_000, None),
        ("", 13_000, None),
    ];
    for (symbol, version, expected) in cases {
        assert_eq!(
            lookup(symbol, version),
            expected.and_then(address),
            "{symbol} {version}"
        );
    }
}

#[test]
fn what_is_late_is_exported() {
    for (name, _) in SINCE {
        assert!(address(name).is_some(), "{name}");
    }
}

#[test]
fn what_is_not_emulated_says_its_name() {
    let code = others::cuTexObjectCreate();
    assert_eq!(code, code::NOT_SUPPORTED);
    let text = crate::driver::error::last_text(code);
    assert_eq!(text, "cuTexObjectCreate is not emulated");
}

/// `driver-api.md`, which this file is the source of.
fn table() -> String {
    let mut text = String::from(
        "# The driver API\n\nEvery function that the emulator exports, by what it does. A test keeps this file as \
         `src/driver/symbols.rs` has it;\n`DRIVER_API=write cargo test --lib driver_api` writes it anew.\n",
    );
    let count = |state| ALL.iter().filter(|(_, found, _)| *found == state).count();
    for (state, title, words) in [
        (
            State::Emulated,
            "Emulated",
            "By the file of `src/driver/` that has them.",
        ),
        (
            State::Accepted,
            "Accepted",
            "They check their arguments and do nothing: hints, and settings that change no result here.",
        ),
        (
            State::Refused,
            "Refused",
            "They return `CUDA_ERROR_NOT_SUPPORTED`, and say their name once.",
        ),
    ] {
        text += &format!("\n## {title}: {}\n\n{words}\n", count(state));
        let areas: Vec<&str> = (ALL.iter())
            .filter(|(_, found, _)| *found == state)
            .map(|(.., area)| *area)
            .collect();
        let mut areas: Vec<&str> = areas.chunk_by(|a, b| a == b).map(|same| same[0]).collect();
        areas.dedup();
        for area in areas {
            let names: Vec<&str> = (ALL.iter())
                .filter(|entry| (entry.1, entry.2) == (state, area))
                .map(|(name, ..)| *name)
                .collect();
            let head = if area.is_empty() {
                String::new()
            } else {
                format!("**{area}**: ")
            };
            let mut line = head;
            text.push('\n');
            for (index, name) in names.iter().enumerate() {
                let end = if index + 1 == names.len() { "" } else { ", " };
                let word = format!("`{name}`{end}");
                if line.len() + word.len() > 118 {
                    text += line.trim_end();
                    text.push('\n');
                    line.clear();
                }
                line += &word;
            }
            text += &line;
            text.push('\n');
        }
    }
    text
}

#[test]
fn driver_api_is_documented_as_it_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/driver-api.md");
    if std::env::var("DRIVER_API").is_ok_and(|value| value == "write") {
        std::fs::write(path, table()).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap();
    assert!(
        found == table(),
        "{path} is not what DRIVER_API=write writes"
    );
}

#[test]
fn no_function_minds_nulls_and_zeros() {
    type Any = extern "C" fn(
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
        usize,
    ) -> CUresult;
    let run = |name: &str| {
        let function = address(name).unwrap();
        // SAFETY: an address of a C function of this file. None has more arguments, all are integers, pointers or
        // structures of 8 bytes, and arguments that it does not take are the caller's to drop.
        let function: Any = unsafe { std::mem::transmute(function) };
        function(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    };
    assert_eq!(run("cuInit"), code::SUCCESS);
    let mut context = 0;
    let create = || crate::driver::context::cuCtxCreate_v2(Out::to(&mut context), 0, 0);
    // A thread of its own, since contexts are current to threads.
    let codes = std::thread::scope(|scope| {
        let handle = scope.spawn(move || {
            let mut create = create;
            let mut codes = Vec::new();
            for with_context in [false, true] {
                if with_context {
                    assert_eq!(create(), code::SUCCESS);
                }
                codes.extend(
                    ALL.iter()
                        .map(|(name, state, _)| (*name, *state, run(name))),
                );
            }
            codes
        });
        handle.join().unwrap()
    });
    for (name, state, code) in codes {
        let known = [
            code::SUCCESS,
            code::INVALID_VALUE,
            code::INVALID_HANDLE,
            code::INVALID_CONTEXT,
            code::INVALID_DEVICE,
            code::INVALID_IMAGE,
            code::NOT_FOUND,
            code::UNSUPPORTED_LIMIT,
            code::ILLEGAL_STATE,
            code::HOST_MEMORY_NOT_REGISTERED,
            code::STREAM_CAPTURE_UNSUPPORTED,
        ];
        match state {
            State::Refused => assert_eq!(code, code::NOT_SUPPORTED, "{name}"),
            _ => assert!(known.contains(&code), "{name} returned {code}"),
        }
    }
}
