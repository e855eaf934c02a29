//! Compiles the kernels of the table in src/abi to one fatbin a unit; knows no operation by name.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

#[path = "src/abi/mod.rs"]
pub mod abi;

use abi::{Dtype, Entry, Unit};

/// What the kernels are compiled for if CUDA_COMPUTE_CAP does not say: every GPU since Ampere by
/// the PTX of the first, Hopper's own instructions by the second.
const DEFAULT_TARGETS: &str = "80,90a";

const NVCC_FLAGS: &[&str] = &["-std=c++17", "-O3", "-lineinfo", "-Ikernels", "-Xptxas=-v"];

fn main() {
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP", "NVCC_CCBIN", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for path in ["build.rs", "src/abi", "kernels"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let result = match find_nvcc() {
        _ if env::var_os("DOCS_RS").is_some() => write_images(&out, "", &[]),
        Some(nvcc) => {
            println!("cargo::rerun-if-changed={}", nvcc.display());
            compile(&nvcc, &out)
        }
        None => {
            // a path that does not exist makes cargo look again at each build
            println!("cargo::rerun-if-changed={}", toolkit().display());
            println!(
                "cargo::warning=no nvcc found (NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, \
                 target/cuda-toolkit): seqmix is built without kernels; `cargo xtask toolkit` installs one"
            );
            write_images(&out, "", &[])
        }
    };
    if let Err(message) = result {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

/// Where `cargo xtask toolkit` puts nvcc.
fn toolkit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda-toolkit/nvidia/cu13/bin/nvcc")
}

fn find_nvcc() -> Option<PathBuf> {
    let name = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
    if let Some(nvcc) = env::var_os("NVCC") {
        return Some(nvcc.into());
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let path = env::var_os("PATH").unwrap_or_default();
    homes
        .map(|home| PathBuf::from(home).join("bin"))
        .chain(env::split_paths(&path))
        .chain(["/usr/local/cuda/bin".into()])
        .map(|folder| folder.join(name))
        .chain([toolkit()])
        .find(|nvcc| nvcc.is_file())
}

/// Compiles each unit whose inputs changed, as many at once as there are cores.
fn compile(nvcc: &Path, out: &Path) -> Result<(), String> {
    let targets = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| DEFAULT_TARGETS.into());
    let mut flags: Vec<String> = NVCC_FLAGS.iter().map(|flag| flag.to_string()).collect();
    for target in targets.split(',').map(str::trim) {
        if !target.trim_end_matches(['a', 'f']).parse::<u32>().is_ok_and(|cap| cap >= 80) {
            return Err(format!(
                "CUDA_COMPUTE_CAP={targets}: {target:?} is not a compute capability from 80 on, like 80, 90a or 120"
            ));
        }
        flags.push(format!("-gencode=arch=compute_{target},code=[sm_{target},compute_{target}]"));
    }
    let units = abi::units();
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(vec![String::new(); units.len()]);
    let failure = Mutex::new(None);
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get());
    thread::scope(|scope| {
        for _ in 0..workers.min(units.len()) {
            scope.spawn(|| {
                while let Some((index, unit)) = { let i = next.fetch_add(1, Ordering::Relaxed); units.get(i).map(|u| (i, u)) } {
                    match compile_unit(nvcc, &flags, unit, out) {
                        Ok(report) => reports.lock().unwrap()[index] = report,
                        Err(message) => { failure.lock().unwrap().get_or_insert(message); return; }
                    }
                }
            });
        }
    });
    if let Some(message) = failure.into_inner().unwrap() {
        return Err(message);
    }
    let _ = reports;
    write_images(out, &targets, &units)
}

fn compile_unit(nvcc: &Path, flags: &[String], unit: &Unit, out: &Path) -> Result<String, String> {
    let source = out.join(format!("{}.cu", unit.name));
    fs::write(&source, stub(unit)).map_err(|e| e.to_string())?;
    let output = Command::new(nvcc).args(flags).arg("-fatbin").arg("-o").arg(out.join(format!("{}.fatbin", unit.name))).arg(&source).output().map_err(|e| e.to_string())?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() { return Err(report); }
    Ok(report)
}

fn stub(unit: &Unit) -> String {
    let mut cu = format!("#include \"{}\"\n", unit.header);
    for dtype in Dtype::ALL {
        let _ = writeln!(cu, "static_assert(sizeof({}) == {}, \"{}\");", dtype.cpp(), dtype.bytes(), dtype.name());
    }
    for entry in &unit.entries {
        let Entry { name, instance, params, threads, shared_bytes } = entry;
        let _ = writeln!(cu, "static_assert(sizeof({}) == {}, \"{name}: bytes of the parameters\");", params.cpp, params.bytes);
        for (field, offset) in params.fields {
            let _ = writeln!(cu, "static_assert(offsetof({}, {field}) == {offset}, \"{name}: offset of {field}\");", params.cpp);
        }
        let _ = writeln!(cu, "using {name}_kernel = {instance};\nstatic_assert({name}_kernel::kThreads == {threads}, \"{name}: threads\");\nstatic_assert(sizeof({name}_kernel::Smem) == {shared_bytes}, \"{name}: shared memory\");");
        let _ = writeln!(cu, "extern \"C\" __global__ void __launch_bounds__({threads}) {name}(const __grid_constant__ {} params) {{\n  extern __shared__ __align__(128) unsigned char smem[];\n  {name}_kernel::run(params, *reinterpret_cast<{name}_kernel::Smem*>(smem));\n}}", params.cpp);
    }
    cu
}

fn write_images(out: &Path, targets: &str, units: &[Unit]) -> Result<(), String> {
    let mut rust = String::from("const IMAGES: &[Image] = &[\n");
    for unit in units {
        let _ = writeln!(rust, "    Image {{ unit: {0:?}, targets: {targets:?}, fatbin: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{0}.fatbin\")) }},", unit.name);
    }
    rust.push_str("];\nconst KERNELS: &[KernelInfo] = &[];\n");
    fs::write(out.join("images.rs"), rust).map_err(|e: io::Error| e.to_string())
}
