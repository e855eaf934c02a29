//! Any text that is lowered is run too, each kernel with its first parameters leading to a buffer: it ends, with or without
//! a fault. `cargo fuzz run launch fuzz/corpus/launch tests/pass tests/fail`.

#![no_main]

use std::sync::Arc;

use cuda_emulator::{Device, Launch, Memory, Module, Options, Program, Schedule, launch};
use libfuzzer_sys::fuzz_target;

/// Bytes of device memory, and of the buffer in it.
const MEMORY: u64 = 1 << 20;
const BUFFER: usize = 1 << 12;

fuzz_target!(|text: &str| {
    let Ok(program) = Program::parse(text) else {
        return;
    };
    let memory = Memory::new(MEMORY);
    let Ok(module) = Module::load(Arc::new(program), &memory) else {
        return;
    };
    let Ok(buffer) = memory.alloc(BUFFER as u64) else {
        return;
    };
    if memory.write(buffer, &[1; BUFFER]).is_err() {
        return;
    }
    let device = Device::sm_90();
    for kernel in module.program().kernels() {
        let params: Vec<u8> = buffer.to_le_bytes().into_iter().cycle().take(kernel.param_bytes() as usize).collect();
        for schedule in [Schedule::LowestPc, Schedule::Adversarial(1)] {
            let options = Options {
                threads: 1,
                schedule,
                max_instructions: 4000,
                ..Options::default()
            };
            let asked = Launch {
                params: &params,
                dynamic_shared: 1 << 10,
                dynamic_shared_limit: 1 << 10,
                ..Launch::new(&module, &kernel.name, [2, 1, 1], [64, 1, 1])
            };
            let _ = launch(&asked, &device, &memory, &options);
        }
    }
});
