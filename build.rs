//! Compiles the kernels of the table in src/abi, a fatbin a unit; knows no operation by name.
//!
//! nvcc is looked for in NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, and in
//! target/cuda-toolkit, where `cargo xtask toolkit` puts it. Without it, and on docs.rs, the crate is
//! built without kernels. Nothing is ever downloaded here.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use std::{env, fs, io, thread};

#[path = "src/abi/mod.rs"]
pub mod abi;

use abi::{Dtype, Entry, Unit};

type Result<T> = std::result::Result<T, String>;

/// What the kernels are compiled for unless CUDA_COMPUTE_CAP says otherwise: SASS and PTX for
/// Ampere, whose PTX every later GPU can compile, and for Hopper with its own instructions.
const DEFAULT_TARGETS: &str = "80,90a";

/// What nvcc itself reads of its environment.
const NVCC_ENVIRONMENT: [&str; 3] = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// No fast-math: the kernels choose approximate instructions one by one.
const NVCC_FLAGS: &[&str] = &[
    "-std=c++17",
    "-O3",
    "-lineinfo",
    "-Xptxas=-v",
    "-Ikernels",
    "-fatbin",
];

/// What ptxas reported of a kernel for one target.
struct Report {
    name: String,
    arch: String,
    registers: u32,
    spill_bytes: u32,
    shared_bytes: u32,
}

fn main() {
    if let Err(message) = build() {
        eprintln!("\n{message}\n");
        std::process::exit(1);
    }
}

fn build() -> Result<()> {
    let variables = [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "CUDA_COMPUTE_CAP",
        "DOCS_RS",
    ];
    for variable in variables.into_iter().chain(NVCC_ENVIRONMENT) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for path in ["build.rs", "src/abi", "kernels"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    if env::var_os("DOCS_RS").is_some() {
        return write_images(&out, "", &[], &[]);
    }
    let Some(nvcc) = find_nvcc() else {
        println!("cargo::rerun-if-env-changed=PATH");
        if Path::new("xtask").is_dir() {
            // a path that does not exist makes cargo look again at each build
            println!("cargo::rerun-if-changed={}", toolkit().display());
        }
        println!(
            "cargo::warning=no nvcc found (NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, \
             target/cuda-toolkit): building seqmix without kernels. `cargo xtask toolkit` installs nvcc."
        );
        return write_images(&out, "", &[], &[]);
    };
    println!("cargo::rerun-if-changed={}", nvcc.display());
    let targets = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| DEFAULT_TARGETS.into());
    let units = abi::units();
    let mut flags = target_flags(&targets)?;
    flags.extend(compression_flag(&nvcc)?);
    let reports = compile(&nvcc, &flags, &units, &out)?;
    write_images(&out, &targets, &units, &reports)
}

/// Where `cargo xtask toolkit` puts nvcc: in the workspace, whatever CARGO_TARGET_DIR says.
fn toolkit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda-toolkit/nvidia/cu13/bin/nvcc")
}

fn find_nvcc() -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC").filter(|nvcc| !nvcc.is_empty()) {
        return Some(nvcc.into());
    }
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os);
    let path = env::var_os("PATH").unwrap_or_default();
    homes
        .map(|home| PathBuf::from(home).join("bin"))
        .chain(env::split_paths(&path))
        .chain([PathBuf::from("/usr/local/cuda/bin")])
        .map(|folder| folder.join(&name))
        .chain([toolkit()])
        .find(|nvcc| nvcc.is_file())
}

/// nvcc's flags for compute capabilities like `80,90a,120`: SASS and PTX for each.
fn target_flags(targets: &str) -> Result<Vec<String>> {
    let flag = |target: &str| {
        let number = target.trim_end_matches(['a', 'f']);
        if number.parse::<u32>().is_ok_and(|number| number >= 80) {
            Ok(format!(
                "-gencode=arch=compute_{target},code=[sm_{target},compute_{target}]"
            ))
        } else {
            Err(format!(
                "CUDA_COMPUTE_CAP=\"{targets}\": \"{target}\" is not a compute capability of 80 or more, \
                 like 80, 90a or 120"
            ))
        }
    };
    targets.split(',').map(str::trim).map(flag).collect()
}

/// The flag that makes fatbins a quarter as large, if this nvcc knows it: older ones do not.
fn compression_flag(nvcc: &Path) -> Result<Option<String>> {
    let help = run(Command::new(nvcc).arg("--help"))?;
    let known = help.contains("--compress-mode");
    Ok(known.then(|| "--compress-mode=size".into()))
}

/// Compiles the units, some at a time.
fn compile(nvcc: &Path, flags: &[String], units: &[Unit], out: &Path) -> Result<Vec<Report>> {
    let version = run(Command::new(nvcc).arg("--version"))?;
    let queue: Mutex<VecDeque<&Unit>> = Mutex::new(units.iter().collect());
    let next = || {
        queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let worker = || {
        let mut reports = Vec::new();
        while let Some(unit) = next() {
            let log = compile_unit(nvcc, &version, flags, unit, out)?;
            reports.extend(ptxas_reports(&log, unit)?);
        }
        Ok(reports)
    };
    // as many as cargo itself would run
    let jobs = env::var("NUM_JOBS")
        .ok()
        .and_then(|jobs| jobs.parse().ok())
        .unwrap_or(1);
    let results: Vec<Result<Vec<Report>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, _>| {
            worker
                .join()
                .unwrap_or_else(|_| Err("a compiling thread panicked".into()))
        };
        workers.into_iter().map(join).collect()
    });
    let mut reports = Vec::new();
    for result in results {
        reports.extend(result?);
    }
    Ok(reports)
}

/// Compiles a unit, unless nothing has changed that goes into it; returns what nvcc said.
fn compile_unit(
    nvcc: &Path,
    version: &str,
    flags: &[String],
    unit: &Unit,
    out: &Path,
) -> Result<String> {
    let file = |extension: &str| out.join(format!("{}.{extension}", unit.name));
    let (source, fatbin, log) = (file("cu"), file("fatbin"), file("log"));
    let stub = stub(unit);
    // the inputs themselves, not a hash of them: equal means equal
    let environment = NVCC_ENVIRONMENT.map(env::var_os);
    let mut inputs = format!("{version}\n{environment:?}\n{NVCC_FLAGS:?}\n{flags:?}\n{stub}");
    let operation = unit.header.split('/').next().unwrap_or_default();
    for folder in ["common", operation] {
        append_files(&Path::new("kernels").join(folder), &mut inputs).map_err(in_file(folder))?;
    }
    let record = file("inputs");
    if fs::read_to_string(&record).is_ok_and(|built| built == inputs) && fatbin.is_file() {
        return fs::read_to_string(&log).map_err(in_file(&log));
    }
    // removed first and written last, so that an interrupted build compiles again
    if record.exists() {
        fs::remove_file(&record).map_err(in_file(&record))?;
    }
    let start = Instant::now();
    fs::write(&source, stub).map_err(in_file(&source))?;
    let mut command = Command::new(nvcc);
    command
        .args(NVCC_FLAGS)
        .args(flags)
        .arg("-o")
        .arg(&fatbin)
        .arg(&source);
    let said = run(&mut command)?;
    for warning in said.lines().filter(|line| line.contains("warning")) {
        println!("cargo::warning={warning}");
    }
    fs::write(&log, &said).map_err(in_file(&log))?;
    fs::write(&record, inputs).map_err(in_file(&record))?;
    let seconds = start.elapsed().as_secs_f32();
    progress(&format!("compiled {} in {seconds:.1} s", unit.name));
    Ok(said)
}

/// Says what was done: to cargo, which shows it with -vv only, and to the file that SEQMIX_BUILD_LOG
/// names, by which `cargo xtask` shows it.
fn progress(line: &str) {
    eprintln!("{line}");
    let log = env::var_os("SEQMIX_BUILD_LOG");
    let log = log.and_then(|log| fs::OpenOptions::new().append(true).open(log).ok());
    if let Some(mut log) = log {
        // a log that cannot be written is no reason to fail
        let _ = io::Write::write_all(&mut log, format!("seqmix: {line}\n").as_bytes());
    }
}

fn append_files(folder: &Path, text: &mut String) -> io::Result<()> {
    let files: io::Result<Vec<_>> = fs::read_dir(folder)?
        .map(|file| file.map(|f| f.path()))
        .collect();
    let mut files = files?;
    files.sort();
    for file in files {
        text.push_str(&fs::read_to_string(file)?);
    }
    Ok(())
}

/// Runs nvcc; returns its output, or as the error all that helps to see what went wrong.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("cannot run {name}: {error}; is NVCC the path of an nvcc?"))?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() {
        return Ok(text);
    }
    let mut message = format!("{name} failed ({}): {command:?}\n{text}", output.status);
    if text.contains("host compiler") {
        message.push_str(
            "\nnvcc needs a host C++ compiler: install g++, or set NVCC_CCBIN to one that it supports",
        );
    }
    Err(message)
}

/// The CUDA source of a unit: its kernels, each after the assertions that C++ agrees with Rust.
fn stub(unit: &Unit) -> String {
    let mut cu = format!("#include <cstddef>\n#include \"{}\"\n", unit.header);
    let mut assert = |condition: String, what: &str| {
        let message = format!("{what}: src/abi and the kernel disagree");
        writeln!(cu, "static_assert({condition}, \"{message}\");").unwrap_or_default();
    };
    for dtype in Dtype::ALL {
        assert(
            format!("sizeof({}) == {}", dtype.cpp(), dtype.bytes()),
            dtype.name(),
        );
    }
    let mut kernels = String::new();
    for entry in &unit.entries {
        let Entry {
            name,
            instance,
            params,
            threads,
            blocks,
            shared_bytes,
        } = entry;
        for structure in params.parts.iter().chain([params]) {
            let cpp = structure.cpp;
            assert(format!("sizeof({cpp}) == {}", structure.bytes), cpp);
            for (field, offset) in structure.fields {
                assert(
                    format!("offsetof({cpp}, {field}) == {offset}"),
                    &format!("{cpp}::{field}"),
                );
            }
        }
        // in parentheses: the instance holds commas
        assert(
            format!("({instance}::kThreads == {threads})"),
            &format!("{name}: threads"),
        );
        assert(
            format!("(sizeof({instance}::Smem) == {shared_bytes})"),
            &format!("{name}: Smem"),
        );
        kernels.push_str(&format!(
            "\n\
             extern \"C\" __global__ void __launch_bounds__({threads}, {blocks})\n\
             {name}(const __grid_constant__ {} params) {{\n    \
                 using Kernel = {instance};\n    \
                 extern __shared__ __align__(128) unsigned char smem[];\n    \
                 Kernel::run(params, *reinterpret_cast<Kernel::Smem*>(smem));\n\
             }}\n",
            params.cpp
        ));
    }
    cu + &kernels
}

/// Reads `ptxas -v`: for each kernel and target a line with its name, one with its spills, and one
/// with its registers and static shared memory.
fn ptxas_reports(log: &str, unit: &Unit) -> Result<Vec<Report>> {
    let mut reports: Vec<Report> = Vec::new();
    for line in log.lines() {
        let number_before = |unit: &str| -> Option<u32> {
            line.split(unit)
                .next()?
                .split(' ')
                .next_back()?
                .parse()
                .ok()
        };
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut words = rest.split('\'');
            reports.push(Report {
                name: words.next().unwrap_or_default().into(),
                arch: words.nth(1).unwrap_or_default().into(),
                registers: 0,
                spill_bytes: 0,
                shared_bytes: 0,
            });
        } else if let Some(report) = reports.last_mut() {
            if line.contains("spill stores") {
                let spills = [" bytes spill stores", " bytes spill loads"];
                report.spill_bytes += spills
                    .iter()
                    .filter_map(|unit| number_before(unit))
                    .sum::<u32>();
            } else if line.contains("Used ") {
                report.registers = number_before(" registers").unwrap_or(0);
                report.shared_bytes += number_before(" bytes smem").unwrap_or(0);
            }
        }
    }
    for entry in &unit.entries {
        let mut of_entry = reports
            .iter()
            .filter(|report| report.name == entry.name)
            .peekable();
        if of_entry.peek().is_none() || of_entry.any(|report| report.registers == 0) {
            return Err(format!(
                "cannot read what ptxas says of {}:\n{log}",
                entry.name
            ));
        }
    }
    Ok(reports)
}

/// Writes the Rust statics that src/images.rs includes: of a constant, each part of a program that reads it would hold
/// a copy of all images.
fn write_images(out: &Path, targets: &str, units: &[Unit], reports: &[Report]) -> Result<()> {
    let mut rust = String::from("static IMAGES: &[Image] = &[\n");
    for unit in units {
        let fatbin = out.join(format!("{}.fatbin", unit.name));
        rust.push_str(&format!(
            "    Image {{ unit: {:?}, targets: {targets:?}, fatbin: include_bytes!({fatbin:?}) }},\n",
            unit.name
        ));
    }
    rust.push_str("];\n\nstatic KERNELS: &[KernelInfo] = &[\n");
    for entry in units.iter().flat_map(|unit| &unit.entries) {
        for report in reports.iter().filter(|report| report.name == entry.name) {
            let shared_bytes = report.shared_bytes as usize + entry.shared_bytes;
            rust.push_str(&format!(
                "    KernelInfo {{ name: {:?}, arch: {:?}, threads: {}, registers: {}, \
                 spill_bytes: {}, shared_bytes: {shared_bytes} }},\n",
                report.name, report.arch, entry.threads, report.registers, report.spill_bytes,
            ));
        }
    }
    rust.push_str("];\n");
    let path = out.join("images.rs");
    fs::write(&path, rust).map_err(in_file(&path))
}

fn in_file(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{}: {error}", path.as_ref().display())
}
