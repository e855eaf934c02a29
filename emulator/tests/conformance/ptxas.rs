//! Every text is PTX to the real assembler too, where it is at hand.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `ptxas` beside the nvcc that `NVCC`, `CUDA_HOME`, `CUDA_PATH` or `PATH` names.
fn find() -> Option<PathBuf> {
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

#[test]
fn the_assembler_accepts_every_text() {
    let Some(ptxas) = find() else {
        println!("no ptxas beside nvcc: the texts are not assembled");
        return;
    };
    let mut failures = Vec::new();
    for arch in [80, 86, 89, 90] {
        // the forms of a chapter that have the same declarations, in one text
        let mut modules: BTreeMap<(&str, String), String> = BTreeMap::new();
        for (chapter, forms) in crate::all() {
            for (at, form) in forms.iter().filter(|form| form.arch == arch).enumerate() {
                let kernel = form.kernel(&format!("form{at}"));
                let text = modules.entry((chapter, form.module.clone())).or_default();
                *text += &format!("// {}\n{kernel}", form.name.replace('\n', " "));
            }
        }
        for (at, ((chapter, module), kernels)) in modules.into_iter().enumerate() {
            let name = format!("{chapter}{at}");
            let text =
                format!(".version 8.7\n.target sm_{arch}\n.address_size 64\n{module}\n{kernels}");
            failures.extend(assemble(&ptxas, arch, &name, &text));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The words of the assembler, if it refuses a text.
fn assemble(ptxas: &Path, arch: u32, name: &str, text: &str) -> Option<String> {
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
