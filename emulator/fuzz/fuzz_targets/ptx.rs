//! Any text is parsed and lowered, or refused; the cases in `tests/pass` are a good corpus:
//! `cargo fuzz run ptx fuzz/corpus/ptx tests/pass tests/fail`.

#![no_main]

use cuda_emulator::Program;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = Program::parse(text);
});
