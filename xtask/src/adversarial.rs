//! `cargo xtask adversarial`: the tests of seqmix on the emulator where lanes, warps, blocks and copies take turns by
//! chance, and whether each kernel ran in them.

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::{shell, toolkit};

/// The seeds that are taken if none is given, one for each pose.
const SEEDS: [&str; 2] = ["1", "2"];

const POSES: [&str; 2] = ["sm_80", "sm_90"];

/// Tests that reach every kernel on both poses and take little time together. A kernel that none of them reaches is an
/// error of `check` below.
const TESTS: &str = include_str!("adversarial.txt");

/// Which tests run.
pub(crate) enum Choice {
    /// Those of `adversarial.txt`.
    Listed,
    All,
}

/// Sets up the toolkit and runs the tests in both poses; `seed` is that of both if it is given.
pub(crate) fn run(choice: Choice, seed: Option<&str>) -> Result<ExitCode> {
    toolkit::ensure(toolkit::Mode::IfMissing)?;
    let folder = crate::root().join("target/adversarial");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (pose, usual) in POSES.into_iter().zip(SEEDS) {
        let seed = seed.unwrap_or(usual);
        let coverage = folder.join(format!("{pose}.txt"));
        fs::write(&coverage, "").with_context(|| format!("cannot write {}", coverage.display()))?;
        let mut cargo = shell::cargo();
        cargo.args(["test", "--package", "seqmix", "--test", "it", "--"]);
        if let Choice::Listed = choice {
            cargo.arg("--exact").args(listed());
        }
        cargo
            .env("SEQMIX_DRIVER", "emulator")
            .env("CUDA_EMULATOR_ARCH", pose)
            .env("CUDA_EMULATOR_SCHEDULE", format!("adversarial:{seed}"))
            .env("CUDA_EMULATOR_COVERAGE", &coverage);
        let status = shell::run(&mut cargo)?;
        if !status.success() {
            eprintln!("xtask: {pose} failed in the order of seed {seed}");
            return Ok(shell::exit_code(status));
        }
        let lines = fs::read_to_string(&coverage)
            .with_context(|| format!("cannot read {}", coverage.display()))?;
        let kernels = check(&lines).with_context(|| format!("as {pose}"))?;
        eprintln!("xtask: all {kernels} kernels ran as {pose} in the order of seed {seed}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The tests of the list, which has one a line.
fn listed() -> impl Iterator<Item = &'static str> {
    (TESTS.lines().map(str::trim)).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Fails unless every kernel that a module has also ran, by the lines that the emulator wrote; their number.
fn check(lines: &str) -> Result<usize> {
    let (mut has, mut ran) = (BTreeSet::new(), BTreeSet::new());
    for line in lines.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "has", kernel] => has.insert(kernel),
            [_, "ran", kernel] => ran.insert(kernel),
            _ => bail!("the emulator wrote `{line}` about its coverage"),
        };
    }
    let missing: Vec<_> = has.difference(&ran).copied().collect();
    if has.is_empty() {
        bail!("no module was loaded");
    }
    if !missing.is_empty() {
        bail!(
            "{} of {} kernels did not run: {}\nadd tests that reach them to xtask/src/adversarial.txt",
            missing.len(),
            has.len(),
            missing.join(", ")
        );
    }
    Ok(has.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_did_not_run_is_named() {
        let lines = "sm_80 has sum\nsm_80 has scan\nsm_80 ran sum\n";
        let error = check(lines).unwrap_err().to_string();
        assert!(
            error.starts_with("1 of 2 kernels did not run: scan"),
            "{error}"
        );
        assert_eq!(check(&format!("{lines}sm_80 ran scan")).unwrap(), 2);
        assert!(check("").is_err());
    }

    #[test]
    fn the_list_names_tests() {
        assert!(listed().count() > 0);
        assert!(listed().all(|test| test.contains("::") && !test.contains(' ')));
    }
}
