//! Any bytes are read as a module image, or refused; what PTX they hold is parsed.

#![no_main]

use cuda_emulator::{Device, Program, ptx, registers};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|image: &[u8]| {
    for device in [Device::sm_80(), Device::sm_90()] {
        if let Ok(text) = ptx(image, &device) {
            let _ = Program::parse(&text);
        }
        registers(image, &device);
    }
});
