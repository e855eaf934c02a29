//! Prints what ptxas made of each kernel, or one kernel's PTX: `kernels [KERNEL [sm_80|sm_90]]`.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use cuda_emulator::{Device, ptx};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut out = io::stdout().lock();
    let outcome = match arguments.as_slice() {
        [] => table(&mut out),
        [kernel] => text(&mut out, kernel, "sm_80"),
        [kernel, arch] => text(&mut out, kernel, arch),
        _ => Err("usage: kernels [KERNEL [sm_80|sm_90]]".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kernels: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One line for each kernel and target.
fn table(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    if seqmix::kernels().is_empty() {
        return Err(seqmix::Error::KernelsNotBuilt.into());
    }
    writeln!(
        out,
        "{:32} {:8} {:>9} {:>8} {:>7} {:>13}",
        "kernel", "arch", "registers", "threads", "spills", "shared memory"
    )?;
    for kernel in seqmix::kernels() {
        writeln!(
            out,
            "{:32} {:8} {:9} {:8} {:5} B {:11} B",
            kernel.name,
            kernel.arch,
            kernel.registers,
            kernel.threads,
            kernel.spill_bytes,
            kernel.shared_bytes
        )?;
    }
    Ok(())
}

/// The PTX module that holds `kernel`, as a device of `arch` would compile it.
fn text(out: &mut impl Write, kernel: &str, arch: &str) -> Result<(), Box<dyn Error>> {
    let device = Device::by_name(arch)
        .ok_or_else(|| format!("no device {arch}; there is {}", Device::NAMES))?;
    let entry = format!(".entry {kernel}(");
    for image in seqmix::images() {
        let module = ptx(image.fatbin, &device)?;
        if module.contains(&entry) {
            return Ok(out.write_all(module.as_bytes())?);
        }
    }
    if seqmix::kernels().is_empty() {
        return Err(seqmix::Error::KernelsNotBuilt.into());
    }
    Err(format!("no kernel {kernel}; without a name they are listed").into())
}
