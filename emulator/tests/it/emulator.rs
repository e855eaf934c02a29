//! Runs a kernel on the emulator.

use std::sync::Arc;

use cuda_emulator::{
    Device, Fault, Launch, LoadError, Memory, Module, Options, Program, Report, Schedule, launch,
};

/// The ways a case is run: every device that has its target, in lockstep-like order and in several orders that are not.
pub(crate) fn ways(arch: u32) -> impl Iterator<Item = (Device, Schedule)> {
    let schedules = [
        Schedule::LowestPc,
        Schedule::Adversarial(1),
        Schedule::Adversarial(2),
        Schedule::Adversarial(0x5eed),
    ];
    [Device::sm_80(), Device::sm_90()]
        .into_iter()
        .filter(move |device| device.arch() >= arch)
        .flat_map(move |device| schedules.map(|schedule| (device.clone(), schedule)))
}

/// A program in a memory of its own.
pub(crate) struct Bench {
    pub(crate) memory: Memory,
    pub(crate) module: Module,
}

/// How to launch a kernel on a [`Bench`].
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) device: Device,
    pub(crate) options: Options,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic: u32,
    /// What the function's attribute allows.
    pub(crate) dynamic_limit: u32,
    pub(crate) params: Vec<u8>,
    pub(crate) cooperative: bool,
    /// Blocks of a cluster, where the launch says it.
    pub(crate) cluster: Option<[u32; 3]>,
}

impl Call {
    /// One block of a warp on sm_80 with the given 64-bit parameters.
    pub(crate) fn new(params: &[u64]) -> Call {
        Call {
            device: Device::sm_80(),
            options: Options {
                threads: 1,
                ..Options::default()
            },
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic: 0,
            dynamic_limit: u32::MAX,
            params: params
                .iter()
                .flat_map(|param| param.to_le_bytes())
                .collect(),
            cooperative: false,
            cluster: None,
        }
    }
}

impl Bench {
    pub(crate) fn load(ptx: &str) -> Result<Bench, LoadError> {
        let memory = Memory::new(1 << 28);
        let module = Module::load(Arc::new(Program::parse(ptx)?), &memory)?;
        Ok(Bench { memory, module })
    }

    /// A buffer that holds `bytes`.
    pub(crate) fn buffer(&self, bytes: &[u8]) -> u64 {
        let address = self.memory.alloc(bytes.len().max(1) as u64).unwrap();
        self.memory.write(address, bytes).unwrap();
        address
    }

    /// Launches the kernel `case`.
    pub(crate) fn run(&self, call: &Call) -> Result<Report, Fault> {
        let asked = Launch {
            dynamic_shared: call.dynamic,
            dynamic_shared_limit: call.dynamic_limit,
            params: &call.params,
            cooperative: call.cooperative,
            cluster: call.cluster,
            ..Launch::new(&self.module, "case", call.grid, call.block)
        };
        launch(&asked, &call.device, &self.memory, &call.options)
    }

    /// The contents of a buffer; bytes that nobody wrote are 0xff.
    pub(crate) fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.memory.read(address, &mut out).unwrap();
        out
    }
}

/// A module with one kernel `case(out, in)` of the given declarations and instructions, where `%out` and `%in` point at
/// the slots of the thread's x coordinate and `%t` is that coordinate.
pub(crate) fn kernel(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n\
         .visible .entry case(.param .u64 out, .param .u64 in)\n{{\n\
         .reg .b32 %t, %r<16>;\n.reg .b64 %out, %in, %at, %rd<8>;\n.reg .f32 %f<8>;\n.reg .pred %p<4>;\n\
         ld.param.u64 %out, [out];\nld.param.u64 %in, [in];\nmov.u32 %t, %tid.x;\n\
         mul.wide.u32 %at, %t, 8;\nadd.s64 %out, %out, %at;\nadd.s64 %in, %in, %at;\n{body}\nret;\n}}\n"
    )
}
