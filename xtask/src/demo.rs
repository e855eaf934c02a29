//! `cargo xtask demo`: FlashAttention forward on what a real model computes, checked on this machine.

use std::process::ExitCode;

use anyhow::Result;

use crate::{shell, toolkit};

/// Sets up the toolkit, runs examples/verify.rs and hands on its exit code.
pub(crate) fn run() -> Result<ExitCode> {
    toolkit::ensure(toolkit::Mode::IfMissing)?;
    let status = shell::run(shell::cargo().args(["run", "--example", "verify"]))?;
    Ok(shell::exit_code(status))
}
