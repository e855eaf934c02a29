//! `cargo xtask ptx`: what ptxas made of each kernel, and the PTX of one.

use std::process::ExitCode;

use anyhow::Result;

use crate::{shell, toolkit};

/// Runs examples/kernels.rs, which reads the images that the crate carries.
pub(crate) fn run(arguments: &[&str]) -> Result<ExitCode> {
    toolkit::ensure(toolkit::Mode::IfMissing)?;
    let mut cargo = shell::cargo();
    cargo.args(["run", "--example", "kernels", "--"]);
    let status = shell::run(cargo.args(arguments))?;
    Ok(shell::exit_code(status))
}
