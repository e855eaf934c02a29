//! Which kernels have run: lines in a file, so that tests can tell what they left out.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use super::log;
use super::settings::config;
use crate::device::Device;
use crate::module::Program;

/// A module was loaded that has these kernels: lines such as `sm_80 has sum`.
pub(super) fn loaded(device: &Device, program: &Program) {
    if config().is_ok_and(|config| config.coverage.is_some()) {
        for kernel in program.kernels() {
            note(&format!("sm_{} has {}", device.arch(), kernel.name));
        }
    }
}

/// A kernel ran to its end: a line such as `sm_80 ran sum`.
pub(super) fn ran(device: &Device, kernel: &str) {
    if config().is_ok_and(|config| config.coverage.is_some()) {
        note(&format!("sm_{} ran {kernel}", device.arch()));
    }
}

/// Writes a line the first time that it comes up in this thread: under `cargo test`, in this test.
fn note(line: &str) {
    thread_local! {
        static SAID: RefCell<HashSet<String>> = RefCell::default();
    }
    let Some(path) = config().ok().and_then(|config| config.coverage) else {
        return;
    };
    let new = SAID.with_borrow_mut(|said| said.insert(line.to_owned()));
    if new && append(&path, line).is_err() {
        log::once("the file of CUDA_EMULATOR_COVERAGE cannot be written");
    }
}

/// One write a line: several processes may share the file.
fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}
