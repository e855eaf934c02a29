//! The real assembler, where it is at hand.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `ptxas` beside the nvcc that `NVCC`, `CUDA_HOME`, `CUDA_PATH` or `PATH` names.
pub(crate) fn find() -> Option<PathBuf> {
    let nvcc = env::var_os("NVCC").map(PathBuf::from);
    let beside = nvcc.and_then(|nvcc| nvcc.parent().map(Path::to_path_buf));
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(|name| env::var_os(name).map(|home| PathBuf::from(home).join("bin")));
    let path = env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = env::split_paths(&path).collect();
    beside
        .into_iter()
        .chain(homes)
        .chain(path)
        .map(|folder| folder.join("ptxas"))
        .find(|file| file.is_file())
}

/// The words of the assembler, if it refuses a text.
pub(crate) fn assemble(ptxas: &Path, arch: &str, name: &str, text: &str) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let stem: String = name.chars().map(plain).collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, out) = (
        folder.join(format!("{stem}.{arch}.ptx")),
        folder.join(format!("{stem}.{arch}.cubin")),
    );
    std::fs::write(&source, text).unwrap();
    let run = Command::new(ptxas)
        .arg("-O0")
        .arg(format!("-arch=sm_{arch}"))
        .arg("-o")
        .args([&out, &source])
        .output()
        .unwrap();
    if run.status.success() {
        std::fs::remove_file(source).unwrap();
        std::fs::remove_file(out).unwrap();
        return None;
    }
    let words = String::from_utf8_lossy(&run.stderr);
    let first: Vec<&str> = words.lines().take(5).collect();
    Some(format!(
        "{name}: {}\n  in {}",
        first.join("\n  "),
        source.display()
    ))
}
