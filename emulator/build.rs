//! Gives the shared library the name by which programs look for a CUDA driver, and tells the crate
//! where cargo puts it.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let os = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if matches!(&*os, "linux" | "android" | "freebsd") {
        // The file keeps its own name: called libcuda.so it would shadow a real driver, for cargo
        // puts its folder first on the search path. A loaded library is found by this name instead.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    }
    // OUT_DIR is target/<profile>/build/<package>/out; the library lies in target/<profile>/deps.
    let out = env::var("OUT_DIR").unwrap_or_default();
    let profile = Path::new(&out).ancestors().nth(3);
    let deps = profile
        .map(|folder| folder.join("deps"))
        .unwrap_or_default();
    println!("cargo::rustc-env=CUDA_EMULATOR_FOLDER={}", deps.display());
}
