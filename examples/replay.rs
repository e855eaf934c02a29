//! Runs golden cases through the public API and judges what comes back, by the rule of tests/golden/SCHEMA.md.
//!
//! ```sh
//! cargo run --example replay -- tests/golden/cases/attention_forward__f16_mha.safetensors
//! ```
//!
//! Prints one line a tensor: its name, each measure with its bound, and `ok` or `FAIL`. Exit status: 0 all cases
//! pass, 1 one fails, 2 one is unreadable, 3 an op, dtype, shape or option is not supported; of several cases, the
//! lowest of these that is not 0. `--strict` takes the advisory bounds where a case has them.

#[path = "shared/device.rs"]
mod device;
#[path = "shared/golden.rs"]
mod golden;
#[path = "shared/measure.rs"]
mod measure;

use std::path::Path;
use std::process::ExitCode;

use golden::{Case, Failure, Ops};

const FAILED: u8 = 1;
const UNREADABLE: u8 = 2;
const UNSUPPORTED: u8 = 3;

fn main() -> ExitCode {
    ExitCode::from(run(std::env::args().skip(1)))
}

/// Replays the cases that the arguments name; returns the exit status.
fn run(args: impl Iterator<Item = String>) -> u8 {
    let (options, paths): (Vec<_>, Vec<_>) = args.partition(|arg| arg.starts_with("--"));
    let strict = options == ["--strict"];
    if paths.is_empty() || !(strict || options.is_empty()) {
        let cases = golden::folder().join("cases");
        eprintln!("usage: replay [--strict] CASE.safetensors...");
        eprintln!("there are cases in {}", cases.display());
        return UNREADABLE;
    }
    let mut ops = None;
    let mut codes = Vec::new();
    for path in &paths {
        if paths.len() > 1 {
            println!("{path}");
        }
        codes.push(match replay(Path::new(path), strict, &mut ops) {
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
    let worst = codes.into_iter().filter(|&code| code > 0).min();
    worst.unwrap_or(0)
}

/// Whether every output of the case keeps its bounds. The device is opened for the first case that
/// can be read.
fn replay(path: &Path, strict: bool, ops: &mut Option<Ops>) -> Result<bool, Failure> {
    let case = Case::read(path)?;
    let ops = match ops {
        Some(ops) => ops,
        None => {
            let opened = device::open().map_err(|error| Failure::Failed(error.to_string()));
            ops.insert(Ops::new(&opened?.0)?)
        }
    };
    let verdicts = case.judge(&case.run(ops)?, strict)?;
    for (name, verdict) in &verdicts {
        println!("{name}: {verdict}");
    }
    Ok(verdicts.iter().all(|(_, verdict)| verdict.pass()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(cases: &[&str]) -> u8 {
        let folder = golden::folder().join("cases");
        let path = |case: &&str| format!("{}/{case}.safetensors", folder.display());
        run(cases.iter().map(path))
    }

    const GOOD: &str = "attention_forward__f16_mha";
    const UNKNOWN: &str = "swiglu_forward__f16";

    #[test]
    fn the_exit_status_tells_what_happened() {
        assert_eq!(status(&[GOOD]), 0);
        assert_eq!(status(&["gemm__f16_64x64x64"]), 0);
        assert_eq!(status(&["attention_forward__bf16_alibi"]), UNSUPPORTED);
        assert_eq!(status(&[UNKNOWN]), UNSUPPORTED);
        assert_eq!(status(&["no_such_case"]), UNREADABLE);
        assert_eq!(status(&["../README.md/.."]), UNREADABLE);
        assert_eq!(status(&[]), UNREADABLE);
        assert_eq!(status(&[GOOD, UNKNOWN, GOOD]), UNSUPPORTED);
        assert_eq!(status(&[UNKNOWN, "no_such_case"]), UNREADABLE);
    }

    /// One expected value is changed, in each of the two outputs.
    #[test]
    fn a_wrong_value_fails() {
        for tensor in ["expected.o", "expected.lse"] {
            let good = golden::folder().join(format!("cases/{GOOD}.safetensors"));
            let mut file = std::fs::read(good).unwrap();
            let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let entries: serde_json::Value = serde_json::from_slice(&file[8..header]).unwrap();
            let offset = entries[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
            file[header + offset..][..4].copy_from_slice(&1.0e3_f32.to_le_bytes());
            let name = format!("seqmix-{}-{tensor}.safetensors", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, file).unwrap();
            let status = run(std::iter::once(path.display().to_string()));
            std::fs::remove_file(path).unwrap();
            assert_eq!(status, FAILED, "{tensor}");
        }
    }
}
