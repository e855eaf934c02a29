//! Runs cargo and other programs; says what runs and how long it took.

use std::ffi::OsStr;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::nvcc::{self, Version};

/// The newest CUDA that cudarc has bindings for. Its build script refuses an nvcc on PATH that is
/// newer, unless CUDARC_CUDA_VERSION names a version that it knows.
const CUDARC_NEWEST: Version = Version(13, 4);

/// The file to which build.rs says what it has compiled: our standard error. Cargo keeps what a build
/// script prints to itself, and the kernels are most of a build.
const BUILD_LOG: &str = "SEQMIX_BUILD_LOG";

/// The cargo that runs this program, in the repository's root.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::root());
    let on_path = nvcc::version("nvcc".as_ref()).ok();
    let named = std::env::var_os("CUDARC_CUDA_VERSION").is_some();
    if let Some(version) = cudarc_version(on_path).filter(|_| !named) {
        cargo.env("CUDARC_CUDA_VERSION", version);
    }
    // A regular file would be written at two places at once.
    let our_errors = format!("/proc/{}/fd/2", std::process::id());
    if std::fs::metadata(&our_errors).is_ok_and(|file| !file.is_file()) {
        cargo.env(BUILD_LOG, our_errors);
    }
    cargo
}

/// What CUDARC_CUDA_VERSION must be for this nvcc on PATH; `None` if cudarc knows it.
fn cudarc_version(on_path: Option<Version>) -> Option<String> {
    on_path
        .filter(|&version| version > CUDARC_NEWEST)
        .map(|_| format!("{}0{}0", CUDARC_NEWEST.0, CUDARC_NEWEST.1))
}

/// Runs `command` to its end, its output going where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<ExitStatus> {
    eprintln!("xtask: $ {}", words(command));
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let verdict = if status.success() { "done" } else { "failed" };
    eprintln!("xtask: {verdict} in {:.1} s", start.elapsed().as_secs_f64());
    Ok(status)
}

/// Runs a `cargo build` or `cargo test --no-run` and returns its messages, one JSON value each
/// (the format is in cargo's book under "External tools"). Its progress stays visible.
pub(crate) fn messages(command: &mut Command) -> Result<Vec<Value>> {
    command.arg("--message-format=json-render-diagnostics");
    eprintln!("xtask: $ {}", words(command));
    let start = Instant::now();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo failed ({})", output.status);
    }
    eprintln!("xtask: done in {:.1} s", start.elapsed().as_secs_f64());
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).context("cargo wrote a message that is not JSON"))
        .collect()
}

/// The exit code to hand on for a program that ended with `status`.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    match status.code().map(u8::try_from) {
        Some(Ok(code)) => ExitCode::from(code),
        _ => ExitCode::FAILURE, // ended by a signal
    }
}

/// The command as one would type it: what it adds to the environment, program, arguments.
fn words(command: &Command) -> String {
    let environment = command
        .get_envs()
        .filter(|(name, _)| *name != BUILD_LOG)
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), value?.display())));
    let program = std::path::Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let arguments = command.get_args().map(|word| word.display().to_string());
    environment
        .chain([OsStr::display(program).to_string()])
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cudarc_is_told_a_version_only_if_it_does_not_know_that_of_nvcc() {
        assert_eq!(cudarc_version(None), None);
        assert_eq!(cudarc_version(Some(Version(12, 9))), None);
        assert_eq!(cudarc_version(Some(Version(13, 4))), None);
        assert_eq!(
            cudarc_version(Some(Version(13, 5))).as_deref(),
            Some("13040")
        );
        assert_eq!(
            cudarc_version(Some(Version(14, 0))).as_deref(),
            Some("13040")
        );
    }

    #[test]
    fn commands_are_shown_as_they_would_be_typed() {
        let mut command = Command::new("/opt/rust/bin/cargo");
        command.args(["test", "--workspace"]).env("POSE", "sm_80");
        assert_eq!(words(&command), "POSE=sm_80 cargo test --workspace");
    }
}
