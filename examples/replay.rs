//! Runs golden cases through the public API and judges what comes back, by the rule of tests/golden/SCHEMA.md.
//!
//! ```sh
//! cargo run --example replay -- tests/golden/cases/attention_forward__f16_mha.safetensors
//! ```
//!
//! Prints one line a tensor: its name, each measure with its bound, and `ok` or `FAIL`. Exit status: 0 all cases
//! pass, 1 one fails, 2 one is unreadable, 3 an op, dtype, shape or option is not supported; of several, the first
//! of 1, 2, 3 that occurred. `--strict` takes the advisory bounds where a case has them.

#[path = "shared/device.rs"]
mod device;
#[path = "shared/golden.rs"]
mod golden;
#[path = "shared/measure.rs"]
mod measure;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use golden::{Case, Failure, Ops};

const FAILED: u8 = 1;
const UNREADABLE: u8 = 2;
const UNSUPPORTED: u8 = 3;

fn main() -> ExitCode {
    let (options, paths): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|arg| arg.starts_with("--"));
    let strict = options == ["--strict"];
    if paths.is_empty() || !(strict || options.is_empty()) {
        let cases = golden::folder().join("cases");
        eprintln!(
            "usage: replay [--strict] CASE.safetensors...   (there are some in {})",
            cases.display()
        );
        return ExitCode::from(UNREADABLE);
    }
    let mut ops = None;
    let mut codes = Vec::new();
    for path in paths.iter().map(PathBuf::from) {
        if paths.len() > 1 {
            println!("{}", path.display());
        }
        codes.push(match replay(&path, strict, &mut ops) {
            Ok(true) => 0,
            Ok(false) => FAILED,
            Err(failure) => {
                eprintln!("{failure}");
                match failure {
                    Failure::Failed(_) => FAILED,
                    Failure::Unreadable(_) => UNREADABLE,
                    Failure::Unsupported(_) => UNSUPPORTED,
                }
            }
        });
    }
    ExitCode::from(
        codes
            .into_iter()
            .filter(|&code| code > 0)
            .min()
            .unwrap_or(0),
    )
}

/// Whether every output of the case keeps its bounds. The device is opened for the first case that can be read.
fn replay(path: &Path, strict: bool, ops: &mut Option<Ops>) -> Result<bool, Failure> {
    let case = Case::read(path)?;
    let ops = match ops {
        Some(ops) => ops,
        None => {
            let (context, _) =
                device::open().map_err(|error| Failure::Failed(error.to_string()))?;
            ops.insert(Ops::new(&context)?)
        }
    };
    let verdicts = case.judge(&case.run(ops)?, strict)?;
    for (name, verdict) in &verdicts {
        println!("{name}: {verdict}");
    }
    Ok(verdicts.iter().all(|(_, verdict)| verdict.pass()))
}
