//! A kernel without the library around it, launched on the emulator itself, whatever the driver of the run is. So a
//! test can edit the kernel's text and choose the order in which lanes run.

use std::sync::Arc;

use bytemuck::Pod;
use cuda_emulator::{Device, Fault, Memory, Module, Options, Program, Schedule};
use seqmix::abi::Params;

/// The module that holds `kernel`, as `device` would compile it.
pub(crate) fn ptx(kernel: &str, device: &Device) -> String {
    let entry = format!(".entry {kernel}(");
    let modules = seqmix::images().iter();
    let mut modules = modules.map(|image| cuda_emulator::ptx(image.fatbin, device).unwrap());
    let module = modules.find(|module| module.contains(&entry));
    module.expect("a module with the kernel").into_owned()
}

/// A launch in the making: the kernel's text and its grid.
pub(crate) struct Bare<'a> {
    pub(crate) device: &'a Device,
    pub(crate) kernel: &'a str,
    pub(crate) ptx: &'a str,
    pub(crate) grid: [u32; 3],
    pub(crate) schedule: Schedule,
    /// Judge races on global memory.
    pub(crate) global_races: bool,
}

impl Bare<'_> {
    /// Runs it on these parameters.
    pub(crate) fn launch(&self, memory: &Buffers, params: &[u8]) -> Result<(), Box<Fault>> {
        let program = Program::parse(self.ptx).unwrap_or_else(|error| panic!("{error}"));
        let module = Module::load(Arc::new(program), &memory.0).unwrap();
        let mut kernels = seqmix::kernels().iter();
        let info = kernels.find(|info| info.name == self.kernel).unwrap();
        let block = [info.threads, 1, 1];
        let launch = cuda_emulator::Launch {
            dynamic_shared: info.shared_bytes,
            dynamic_shared_limit: info.shared_bytes,
            params,
            ..cuda_emulator::Launch::new(&module, self.kernel, self.grid, block)
        };
        let options = Options {
            schedule: self.schedule,
            global_races: self.global_races,
            ..Options::default()
        };
        cuda_emulator::launch(&launch, self.device, &memory.0, &options)?;
        Ok(())
    }
}

/// Device memory of one run, in buffers of exact size, so that every wrong bound leaves them.
pub(crate) struct Buffers(Memory);

impl Buffers {
    pub(crate) fn new() -> Self {
        Self(Memory::new(1 << 24))
    }

    /// A buffer of these elements: its address.
    pub(crate) fn upload<T: Pod>(&self, elements: &[T]) -> u64 {
        let bytes = bytemuck::cast_slice(elements);
        let address = self.0.alloc(bytes.len() as u64).unwrap();
        self.0.write(address, bytes).unwrap();
        address
    }

    /// A buffer that nobody has written.
    pub(crate) fn output<T: Pod>(&self, elements: usize) -> u64 {
        self.0.alloc((elements * size_of::<T>()) as u64).unwrap()
    }

    pub(crate) fn download<T: Pod>(&self, address: u64, elements: usize) -> Vec<T> {
        let mut found = vec![T::zeroed(); elements];
        let bytes = bytemuck::cast_slice_mut(&mut found);
        self.0.read(address, bytes).unwrap();
        found
    }
}

/// A kernel's parameters, by the names of their fields. What is not set is 0.
pub(crate) struct Arguments {
    params: Params,
    pub(crate) bytes: Vec<u8>,
}

impl Arguments {
    pub(crate) fn new(params: Params) -> Self {
        let bytes = vec![0; params.bytes];
        Self { params, bytes }
    }

    /// Sets a field, such as `m`, or one of fields that are structs, such as `a.at`.
    pub(crate) fn set<T: Pod>(&mut self, field: &str, value: T) {
        let offset = |params: &Params, name: &str| {
            let mut fields = params.fields.iter();
            let found = fields.find(|field| field.0 == name);
            found
                .unwrap_or_else(|| panic!("{}: no field {name}", params.cpp))
                .1
        };
        let mut at = 0;
        let mut outer = &self.params;
        let mut path = field.split('.').peekable();
        while let Some(name) = path.next() {
            at += offset(outer, name);
            if let Some(inner) = path.peek() {
                let mut parts = self.params.parts.iter();
                let part = parts.find(|part| part.fields.iter().any(|field| field.0 == *inner));
                outer = part.expect("a struct of fields");
            }
        }
        let bytes = bytemuck::bytes_of(&value);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}
