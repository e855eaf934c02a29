//! Runs forms on the driver of this process, and says which lanes are wrong.

use std::sync::{Arc, OnceLock};

use cuda_emulator::{Driver, Settings, configure, select};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

use crate::form::Form;
use crate::golden;

/// The device; the emulator poses as the newest one it knows, which runs every form.
pub(crate) fn context() -> Arc<CudaContext> {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let choice = std::env::var("CONFORMANCE_DRIVER").ok();
        let driver = select(choice.as_deref()).unwrap();
        if driver == Driver::Emulator {
            let settings = Settings {
                arch: Some("sm_90".into()),
                quiet: Some(true),
                ..Settings::default()
            };
            configure(&settings).unwrap();
        }
        println!("conformance on the {driver}");
        driver
    });
    CudaContext::new(0).unwrap()
}

/// What a form wrote, a column an output.
fn run(context: &Arc<CudaContext>, form: &Form) -> Result<Vec<Vec<u64>>, String> {
    let words = |error: cudarc::driver::DriverError| error.to_string();
    let threads = form.threads();
    let stream = context.default_stream();
    let module = context
        .load_module(Ptx::from_src(form.text()))
        .map_err(words)?;
    let kernel = module.load_function("case").map_err(words)?;
    let input: Vec<u64> = form.data.concat();
    // a form without inputs still takes a buffer
    let input = if input.is_empty() { vec![0] } else { input };
    let input = stream.clone_htod(&input).map_err(words)?;
    let mut out = stream
        .alloc_zeros::<u64>(threads * form.outputs.len())
        .map_err(words)?;
    let mut launch = stream.launch_builder(&kernel);
    launch.arg(&mut out).arg(&input);
    let config = LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (threads as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    // SAFETY: the kernel takes two addresses, and each thread stays in its slots of both buffers.
    unsafe { launch.launch(config) }.map_err(words)?;
    let out = stream.clone_dtoh(&out).map_err(words)?;
    Ok(out.chunks(threads).map(<[u64]>::to_vec).collect())
}

/// The first lanes of a form that are wrong.
fn differences(form: &Form, out: &[Vec<u64>]) -> Option<String> {
    let expected = (form.expect)(&form.data);
    assert_eq!(expected.len(), out.len(), "{}: columns", form.name);
    let mut wrong = Vec::new();
    for (at, (expected, found)) in expected.iter().zip(out).enumerate() {
        let kind = form.outputs[at];
        let mask = u64::MAX >> (64 - 8 * kind.bytes());
        for (thread, (expected, &found)) in expected.iter().zip(found).enumerate() {
            let Some(expected) = expected.map(|bits| bits & mask) else {
                continue;
            };
            if !form.tolerance.accepts(kind, expected, found) {
                let inputs: Vec<String> = form
                    .data
                    .iter()
                    .zip(&form.inputs)
                    .map(|(column, kind)| kind.show(column[thread]))
                    .collect();
                let (expected, found) = (kind.show(expected), kind.show(found));
                let inputs = inputs.join(", ");
                wrong.push(format!(
                    "lane {thread}, %o{at}: {found} is not {expected}, of {inputs}"
                ));
            }
        }
    }
    let first = wrong.first()?;
    Some(format!("{} lanes, first {first}", wrong.len()))
}

/// Runs a chapter: how many forms this device has, and the words for those that are wrong.
pub(crate) fn failures(chapter: &str, forms: &[Form]) -> (usize, Vec<String>) {
    let context = context();
    let (major, minor) = context.compute_capability().unwrap();
    let arch = (10 * major + minor) as u32;
    let mut recorder = golden::Recorder::new(chapter, &context.name().unwrap());
    let mut failures = Vec::new();
    let here: Vec<_> = forms.iter().filter(|form| form.arch <= arch).collect();
    for form in &here {
        let name = &form.name;
        match run(&context, form) {
            Ok(out) => {
                recorder.record(form, &out);
                failures.extend(differences(form, &out).map(|wrong| format!("{name}: {wrong}")));
            }
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    failures.extend(recorder.finish());
    (here.len(), failures)
}

/// Runs a chapter and insists on it.
pub(crate) fn check(chapter: &str, forms: &[Form]) {
    let (ran, failures) = failures(chapter, forms);
    assert!(ran > 0, "{chapter}: this device has none of its forms");
    assert!(
        failures.is_empty(),
        "{} of {ran} forms of {chapter} are wrong:\n{}",
        failures.len(),
        failures.join("\n")
    );
    println!("{chapter}: {ran} of {} forms", forms.len());
}
