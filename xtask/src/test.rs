//! `cargo xtask test`: every test of the workspace, on the GPU or on the emulator in both poses.

use std::process::ExitCode;

use anyhow::Result;

use crate::driver::{self, Driver};
use crate::{shell, toolkit};

/// Sets up the toolkit and runs all tests; `arguments` are added to each `cargo test`.
///
/// Without a GPU the integration tests of seqmix run twice, since the images of the two
/// architectures are different code; everything else runs once.
pub(crate) fn run(arguments: &[&str]) -> Result<ExitCode> {
    toolkit::ensure(toolkit::Mode::IfMissing)?;
    let all: &[&str] = &["test", "--workspace"];
    let integration: &[&str] = &["test", "--package", "seqmix", "--test", "it"];
    let runs: &[(&[&str], Option<&str>)] = match driver::chosen() {
        Driver::Cuda => {
            eprintln!(
                "xtask: tests run on the CUDA driver (SEQMIX_DRIVER=emulator: without the GPU)"
            );
            &[(all, None)]
        }
        Driver::Emulator => {
            eprintln!("xtask: tests run on the emulator, posing as sm_80 and then as sm_90");
            &[(all, Some("sm_80")), (integration, Some("sm_90"))]
        }
    };
    for (command, pose) in runs {
        let mut cargo = shell::cargo();
        cargo.args(*command).args(arguments);
        if let Some(pose) = pose {
            cargo.env("CUDA_EMULATOR_ARCH", pose);
        }
        let status = shell::run(&mut cargo)?;
        if !status.success() {
            return Ok(shell::exit_code(status));
        }
    }
    Ok(ExitCode::SUCCESS)
}
