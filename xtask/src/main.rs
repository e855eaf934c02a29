//! `cargo xtask`: the commands that this repository is worked with, one file each.

mod adversarial;
mod bundle;
mod demo;
mod driver;
mod nvcc;
mod ptx;
mod shell;
mod test;
mod toolkit;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask COMMAND

  demo             set up the toolkit if need be, then verify FlashAttention on real data
  test [ARGS]      the same set-up, then all tests; ARGS go to `cargo test`
  adversarial [--all] [SEED]
                   tests that reach every kernel, or all of them, on the emulator, where lanes,
                   warps, blocks and copies take turns by chance; the chances are the seed's
  toolkit [--force]
                   find nvcc, or install the pinned one in target/cuda-toolkit;
                   --force installs it even if another one is found
  ptx [KERNEL [ARCH]]
                   registers, spills and shared memory of each kernel; the PTX of one,
                   for sm_80 or sm_90
  bundle [TARGETS] collect release binaries and data in target/bundle, and pack them in
                   target/bundle.tar.xz, for a GPU host without Rust; kernels for one
                   target, such as 90a, are half of what they are for 80,90a
  help             print this
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        ["demo"] => demo::run(),
        ["test", arguments @ ..] => test::run(arguments),
        ["adversarial"] => adversarial::run(adversarial::Choice::Listed, None),
        ["adversarial", "--all"] => adversarial::run(adversarial::Choice::All, None),
        ["adversarial", "--all", seed] if seed.parse::<u64>().is_ok() => {
            adversarial::run(adversarial::Choice::All, Some(seed))
        }
        ["adversarial", seed] if seed.parse::<u64>().is_ok() => {
            adversarial::run(adversarial::Choice::Listed, Some(seed))
        }
        ["toolkit"] => toolkit::run(toolkit::Mode::IfMissing),
        ["toolkit", "--force"] => toolkit::run(toolkit::Mode::Force),
        ["ptx", arguments @ ..] if !arguments.iter().any(|word| word.starts_with('-')) => {
            ptx::run(arguments)
        }
        ["bundle"] => bundle::run(None),
        ["bundle", targets] if !targets.starts_with('-') => bundle::run(Some(targets)),
        unknown => {
            eprintln!("xtask: unknown command: {}\n\n{USAGE}", unknown.join(" "));
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

/// The repository's root: the folder above this package's.
fn root() -> PathBuf {
    // Cargo sets it for `cargo run`; the built-in path would be stale in a moved checkout.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or(package.clone(), PathBuf::from)
}
