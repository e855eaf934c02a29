//! `cargo xtask bundle`: all that a GPU host without Rust needs to test and measure this crate.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{shell, toolkit};

/// What the archive may have of programs and data, and of kernels for each target: more is slow to copy to a rented
/// machine, and a sign that something fat crept in.
const PROGRAMS: u64 = 16 << 20;
const KERNELS: u64 = 28 << 20;

/// Targets of a build that is not told any.
const DEFAULT_TARGETS: u64 = 2;

/// Data that tests and examples read: the same paths below the bundle as below the repository. They
/// look for them in the working directory, then above their own executable.
const DATA: &[&str] = &["tests/golden"];

/// Where the emulator goes: it is found above the folder of the program that asks for it.
const EMULATOR: &str = "bin/libcuda_emulator.so";

/// The variable that names a build's targets.
const TARGETS: &str = "CUDA_COMPUTE_CAP";

const RUN: &str = include_str!("bundle/run.sh");

/// Builds and collects target/bundle, and packs it into target/bundle.tar.xz; with kernels for `targets`, as
/// CUDA_COMPUTE_CAP names them, or for those that any build has.
pub(crate) fn run(targets: Option<&str>) -> Result<ExitCode> {
    toolkit::ensure(toolkit::Mode::IfMissing)?;
    let root = crate::root();
    let bundle = root.join("target/bundle");
    if bundle.exists() {
        fs::remove_dir_all(&bundle).context("cannot remove the old bundle")?;
    }
    let mut cargo = shell::cargo();
    // not the emulator's own tests and benches: they need no GPU
    cargo
        .args(["build", "--release", "--package", "seqmix"])
        .args(["--tests", "--examples", "--bench", "kernels"])
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    if let Some(targets) = targets {
        cargo.env(TARGETS, targets);
    }
    let messages = shell::messages(&mut cargo)?;
    for (place, file) in binaries(&messages)? {
        copy(&file, &bundle.join(place))?;
    }
    for data in DATA {
        copy(&root.join(data), &bundle.join(data))?;
    }
    let script = bundle.join("run.sh");
    fs::write(&script, RUN).with_context(|| format!("cannot write {}", script.display()))?;
    make_executable(&script)?;

    for part in ["bin", "tests"] {
        println!("{:>8.1} MiB  {part}", mib(size(&bundle.join(part))?));
    }
    let archive = root.join("target/bundle.tar.xz");
    pack(&bundle, &archive)?;
    let bytes = fs::metadata(&archive)
        .with_context(|| format!("cannot read {}", archive.display()))?
        .len();
    println!("{:>8.1} MiB  {}", mib(bytes), archive.display());
    let asked = targets.map(String::from).or_else(|| env::var(TARGETS).ok());
    let limit = limit(asked.as_deref());
    ensure!(
        bytes <= limit,
        "the packed bundle is larger than its limit of {} MiB",
        limit >> 20
    );
    Ok(ExitCode::SUCCESS)
}

/// Bytes that an archive with kernels for these targets may have.
fn limit(targets: Option<&str>) -> u64 {
    let count = targets.map_or(DEFAULT_TARGETS, |targets| targets.split(',').count() as u64);
    PROGRAMS + count * KERNELS
}

/// Where each built file goes in the bundle, from cargo's messages.
fn binaries(messages: &[Value]) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut files: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for message in messages {
        let target = &message["target"];
        let name = target["name"].as_str().unwrap_or_default();
        let kind = target["kind"][0].as_str().unwrap_or_default();
        if let Some(executable) = message["executable"].as_str() {
            let unit_tests = message["profile"]["test"] == true;
            let folder = match kind {
                "example" if !unit_tests => "examples",
                "bench" => "benches",
                _ => "tests", // integration tests, and the unit tests of libraries and examples
            };
            let place = Path::new("bin").join(folder).join(name);
            if let Some(other) = files.insert(place, executable.into()) {
                bail!(
                    "two binaries of one name: {executable} and {}",
                    other.display()
                );
            }
        } else if message["reason"] == "compiler-artifact" && name == "cuda_emulator" {
            let library = message["filenames"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .find(|file| file.ends_with(".so"));
            if let Some(library) = library {
                files.insert(EMULATOR.into(), library.into());
            }
        }
    }
    for needed in ["bin/tests/it", "bin/examples/verify", EMULATOR] {
        ensure!(
            files.contains_key(Path::new(needed)),
            "cargo built no {needed}"
        );
    }
    Ok(files)
}

/// Copies a file, or a folder with all below it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    if from.is_dir() {
        for entry in fs::read_dir(from).with_context(context)? {
            let name = entry.with_context(context)?.file_name();
            copy(&from.join(&name), &to.join(&name))?;
        }
        return Ok(());
    }
    fs::create_dir_all(to.parent().unwrap_or(to)).with_context(context)?;
    fs::copy(from, to).with_context(context)?;
    Ok(())
}

/// Packs a folder. Each program holds all kernels: the dictionary reaches from one copy to the next, so that the archive
/// has them once.
fn pack(folder: &Path, archive: &Path) -> Result<()> {
    let parent = folder.parent().context("the folder lies in no other")?;
    let name = folder.file_name().context("the folder has no name")?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--xz", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(parent)
        .arg(name)
        .env("XZ_OPT", "--lzma2=preset=1,dict=128MiB");
    let status = shell::run(&mut tar)?;
    ensure!(
        status.success(),
        "tar and xz cannot pack {}",
        folder.display()
    );
    Ok(())
}

/// The bytes of all files below `path`.
fn size(path: &Path) -> Result<u64> {
    let context = || format!("cannot read {}", path.display());
    let mut bytes = 0;
    for entry in fs::read_dir(path).with_context(context)? {
        let entry = entry.with_context(context)?;
        let metadata = entry.metadata().with_context(context)?;
        bytes += if metadata.is_dir() {
            size(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
    Ok(()) // bash does not ask
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use serde_json::json;
    use std::process::{Command, Output};
    use std::sync::Mutex;

    #[test]
    fn each_target_has_its_share_of_the_limit() {
        assert_eq!(limit(None), limit(Some("80,90a")));
        assert_eq!(limit(Some("90a")), PROGRAMS + KERNELS);
    }

    fn artifact(name: &str, kind: &str, test: bool, file: &str) -> Value {
        json!({
            "reason": "compiler-artifact",
            "target": { "name": name, "kind": [kind] },
            "profile": { "test": test },
            "filenames": [file],
            "executable": if file.ends_with(".so") { Value::Null } else { json!(file) },
        })
    }

    fn messages() -> Vec<Value> {
        vec![
            artifact("cuda_emulator", "cdylib", false, "/t/libcuda_emulator.so"),
            artifact("seqmix", "lib", true, "/t/seqmix-1"),
            artifact("it", "test", true, "/t/it-2"),
            artifact("verify", "example", false, "/t/verify"),
            artifact("verify", "example", true, "/t/verify-5"),
            artifact("kernels", "bench", true, "/t/kernels-3"),
            json!({ "reason": "build-finished", "success": true }),
        ]
    }

    #[test]
    fn binaries_are_sorted_by_what_they_are() {
        let files = binaries(&messages()).unwrap();
        let places: Vec<_> = files.keys().map(|place| place.to_str().unwrap()).collect();
        assert_eq!(
            places,
            [
                "bin/benches/kernels",
                "bin/examples/verify",
                "bin/libcuda_emulator.so",
                "bin/tests/it",
                "bin/tests/seqmix",
                "bin/tests/verify",
            ]
        );
    }

    #[test]
    fn a_missing_or_ambiguous_binary_is_an_error() {
        let mut without_tests = messages();
        without_tests.retain(|message| message["target"]["name"] != "it");
        let error = binaries(&without_tests).unwrap_err().to_string();
        assert!(error.contains("bin/tests/it"), "{error}");

        let mut twice = messages();
        twice.push(artifact("it", "test", true, "/t/it-4"));
        let error = binaries(&twice).unwrap_err().to_string();
        assert!(
            error.contains("/t/it-2") && error.contains("/t/it-4"),
            "{error}"
        );
    }

    /// A program that another thread's fork still holds open for writing cannot be started.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    /// A bundle whose programs are scripts; `verify` and `it` end with the given statuses.
    fn run_script(name: &str, verify: u8, it: u8, arguments: &[&str]) -> Output {
        let _alone = ONE_AT_A_TIME.lock();
        let folder = std::env::temp_dir().join(format!("seqmix-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let program = |path: &str, text: String| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            make_executable(&path).unwrap();
        };
        let report = |status| format!("#!/bin/sh\necho driver $SEQMIX_DRIVER\nexit {status}\n");
        program("run.sh", RUN.to_owned());
        program("bin/examples/verify", report(verify));
        program("bin/tests/it", report(it));
        program(
            "bin/benches/kernels",
            "#!/bin/sh\necho bench $1 beside $SEQMIX_CUBLAS\n".to_owned(),
        );
        // what Python has installed
        program("site/nvidia/cublas/lib/libcublas.so.9", String::new());
        program("site/nvidia/cu13/lib/libcublas.so.13", String::new());
        program("site/nvidia/cu13/lib/libcublasLt.so.14", String::new());
        let output = Command::new(folder.join("run.sh"))
            .args(arguments)
            .env("PYTHONPATH", folder.join("site"))
            .env_remove("SEQMIX_CUBLAS")
            .output()
            .unwrap();
        fs::remove_dir_all(&folder).unwrap();
        output
    }

    #[test]
    fn the_script_runs_every_part_on_the_cuda_driver_alone() {
        let output = run_script("bundle-all", 0, 0, &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        assert_eq!(text.matches("driver cuda").count(), 2, "{text}");
        assert!(text.contains("bench --bench"), "{text}");
        let cublas = "site/nvidia/cu13/lib/libcublas.so.13\n";
        assert!(text.contains(cublas), "{text}");
        assert!(text.contains("all passed"), "{text}");
    }

    #[test]
    fn the_script_fails_without_a_gpu_before_it_tests_anything() {
        let output = run_script("bundle-no-gpu", 1, 0, &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no GPU"));
        assert!(!String::from_utf8_lossy(&output.stdout).contains("tests-it"));
    }

    #[test]
    fn the_script_fails_when_a_test_fails_and_names_it() {
        let output = run_script("bundle-failure", 0, 101, &["tests"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("tests/it"));
        assert!(!String::from_utf8_lossy(&output.stdout).contains("bench"));
        assert_eq!(
            run_script("bundle-usage", 0, 0, &["everything"])
                .status
                .code(),
            Some(2)
        );
    }
}
