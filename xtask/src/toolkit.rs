//! `cargo xtask toolkit`: finds nvcc, or installs NVIDIA's wheels of it below target/.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::nvcc::{self, NVCC_IN_TOOLKIT, Nvcc, TOOLKIT, Version};
use crate::shell;

/// CUDA 13.0: drivers from r580 on run its PTX, and refuse that of a newer toolkit.
#[rustfmt::skip]
const WHEELS: &[(&str, &str)] = &[
    ("nvidia-cuda-nvcc",    "13.0.88"), // nvcc, ptxas, fatbinary
    ("nvidia-cuda-crt",     "13.0.88"), // the headers that nvcc includes by itself
    ("nvidia-nvvm",         "13.0.88"), // cicc
    ("nvidia-cuda-runtime", "13.0.96"), // cuda_runtime.h, cuda_fp16.h, cuda_bf16.h
    ("nvidia-cuda-cccl",    "13.0.85"), // what those headers include
];

/// The version of `WHEELS`.
const PINNED: Version = Version(13, 0);

/// The oldest nvcc that is let through.
const OLDEST: Version = Version(12, 3);

/// An installation in progress, beside the toolkit's folder: this and the number of the process.
const PARTIAL: &str = "cuda-toolkit.partial-";

/// When to install the wheels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// If no nvcc is found.
    IfMissing,
    /// Whatever is found, and over what was installed before.
    Force,
}

/// The command itself: `ensure`, and one line to standard output.
pub(crate) fn run(mode: Mode) -> Result<ExitCode> {
    let nvcc = ensure(mode)?;
    println!("{}", nvcc.path.display());
    Ok(ExitCode::SUCCESS)
}

/// Finds an nvcc that build.rs will find too, or installs one where build.rs looks last.
pub(crate) fn ensure(mode: Mode) -> Result<Nvcc> {
    check_host_compiler()?;
    if mode == Mode::Force || needs_wheels()? {
        install(&crate::root().join(TOOLKIT))?;
    }
    let nvcc = nvcc::find()?.context("no nvcc after its installation")?;
    eprintln!(
        "xtask: nvcc {} at {} (from {})",
        nvcc.version,
        nvcc.path.display(),
        nvcc.source
    );
    if mode == Mode::Force && nvcc.source != TOOLKIT {
        eprintln!(
            "xtask: note: {} comes before {TOOLKIT}; to use the pinned one, set NVCC={}",
            nvcc.source,
            crate::root().join(TOOLKIT).join(NVCC_IN_TOOLKIT).display()
        );
    }
    check_version(&nvcc)?;
    Ok(nvcc)
}

/// No nvcc at all, or our own one of other versions than `WHEELS`.
fn needs_wheels() -> Result<bool> {
    let toolkit = crate::root().join(TOOLKIT);
    let outdated = toolkit.join(NVCC_IN_TOOLKIT).exists() && !is_complete(&toolkit);
    Ok(match nvcc::find()? {
        None => true,
        Some(nvcc) => nvcc.source == TOOLKIT && outdated,
    })
}

/// Whether pip finished each of `WHEELS` in this folder.
fn is_complete(toolkit: &Path) -> bool {
    WHEELS.iter().all(|(name, version)| {
        let record = format!("{}-{version}.dist-info/RECORD", name.replace('-', "_"));
        toolkit.join(record).is_file()
    })
}

fn check_version(nvcc: &Nvcc) -> Result<()> {
    ensure!(
        nvcc.version >= OLDEST,
        "this nvcc is too old: {OLDEST} is the oldest that works. Let NVCC name another one, or \
         run `cargo xtask toolkit --force` and set NVCC to the path that it names"
    );
    if nvcc.version > PINNED {
        eprintln!(
            "xtask: note: PTX of nvcc {} needs a driver at least as new; {PINNED} is what this \
             project is tested with",
            nvcc.version
        );
    }
    Ok(())
}

/// nvcc preprocesses with the host's gcc and its C++ headers.
fn check_host_compiler() -> Result<()> {
    let named = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    ensure!(
        named || answers(Command::new("g++").arg("--version")),
        "nvcc needs a C++ compiler and there is no g++ on PATH. On Debian or Ubuntu: \
         `apt-get install g++`; or let NVCC_CCBIN name another compiler"
    );
    Ok(())
}

/// Installs the wheels beside `toolkit` and moves them there when they are complete, so that an
/// interrupted download leaves nothing that looks like a toolkit.
fn install(toolkit: &Path) -> Result<()> {
    ensure!(
        cfg!(target_os = "linux"),
        "the wheels are installed on Linux only; elsewhere install CUDA {PINNED} and set CUDA_PATH. \
         Without nvcc the crate builds, but has no kernels"
    );
    let parent = toolkit
        .parent()
        .context("the toolkit's folder has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    remove_abandoned(parent);
    let partial = parent.join(format!("{PARTIAL}{}", std::process::id()));
    let python = python_with_pip(parent)?;

    eprintln!(
        "xtask: installing nvcc {PINNED} in {} (about 300 MB)",
        toolkit.display()
    );
    let status = shell::run(
        Command::new(python)
            .args([
                "-m",
                "pip",
                "install",
                "--no-deps",
                "--only-binary=:all:",
                "--target",
            ])
            .arg(&partial)
            .args(
                WHEELS
                    .iter()
                    .map(|(name, version)| format!("{name}=={version}")),
            )
            // A user's settings of these would forbid --target.
            .env("PIP_USER", "0")
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            // The warning that --target makes pointless.
            .env("PIP_ROOT_USER_ACTION", "ignore"),
    )?;
    if !status.success() {
        let _ = fs::remove_dir_all(&partial);
        bail!(
            "pip did not install nvcc; its messages are above. Without network, point pip at the \
             wheels (PIP_FIND_LINKS, PIP_INDEX_URL), or install CUDA {PINNED} and set CUDA_HOME"
        );
    }
    ensure!(
        is_complete(&partial) && nvcc::version(&partial.join(NVCC_IN_TOOLKIT))? == PINNED,
        "pip reported success, but {} has no nvcc {PINNED}",
        partial.display()
    );
    if toolkit.exists() {
        fs::remove_dir_all(toolkit)
            .with_context(|| format!("cannot remove the old {}", toolkit.display()))?;
    }
    fs::rename(&partial, toolkit)
        .with_context(|| format!("cannot move {} to its place", partial.display()))
}

/// Removes what interrupted installations left in `folder`, but not that of one which still runs.
fn remove_abandoned(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PARTIAL));
        if owner.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // What cannot be removed only takes space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The system's Python if it has pip, else one in a virtual environment below `folder`.
fn python_with_pip(folder: &Path) -> Result<PathBuf> {
    let pythons = ["python3", "python"];
    let has_pip = |python: &Path| answers(Command::new(python).args(["-m", "pip", "--version"]));
    if let Some(python) = pythons
        .map(Path::new)
        .into_iter()
        .find(|python| has_pip(python))
    {
        return Ok(python.into());
    }
    let Some(python) = pythons
        .into_iter()
        .find(|python| answers(Command::new(python).arg("--version")))
    else {
        bail!(
            "installing nvcc takes Python 3 with pip, and there is no python3 on PATH. On Debian \
             or Ubuntu: `apt-get install python3-pip`; or install CUDA {PINNED} and set CUDA_HOME"
        );
    };
    let environment = folder.join("python-with-pip");
    eprintln!("xtask: {python} has no pip; making a virtual environment that has");
    let status = shell::run(
        Command::new(python)
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    let python = environment.join("bin/python");
    ensure!(
        status.success() && has_pip(&python),
        "{} has no pip and cannot make a virtual environment with it. On Debian or Ubuntu: \
         `apt-get install python3-pip`",
        python.display()
    );
    Ok(python)
}

/// Whether the program runs and succeeds; what it prints is not shown.
fn answers(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_a_toolkit_only_with_every_pinned_wheel() {
        let folder = std::env::temp_dir().join(format!("seqmix-wheels-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for (index, (name, version)) in WHEELS.iter().enumerate() {
            assert!(!is_complete(&folder), "complete with {index} wheels");
            let record = folder.join(format!("{}-{version}.dist-info", name.replace('-', "_")));
            fs::create_dir_all(&record).unwrap();
            fs::write(record.join("RECORD"), "").unwrap();
        }
        assert!(is_complete(&folder));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_nvcc_that_is_too_old_is_refused_with_the_way_out() {
        let nvcc = |version| Nvcc {
            path: "nvcc".into(),
            source: "PATH",
            version,
        };
        let error = check_version(&nvcc(Version(11, 8)))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("12.3") && error.contains("toolkit --force"),
            "{error}"
        );
        assert!(check_version(&nvcc(OLDEST)).is_ok());
        assert!(check_version(&nvcc(PINNED)).is_ok());
        assert!(check_version(&nvcc(Version(13, 5))).is_ok());
    }
}
