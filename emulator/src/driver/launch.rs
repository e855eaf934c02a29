//! Kernel launches: the two forms of parameters, launch attributes, and the run itself.

use std::sync::Arc;

use super::context::current;
use super::coverage;
use super::error::{Error, Result, code};
use super::ffi::{CUresult, Handle, HostPtr, In, call};
use super::function::Function;
use super::log;
use super::settings::options;
use super::state::Driver;
use super::stream::stream;
use super::work::{Work, submit};
use crate::exec;
use crate::module::Kernel;
use crate::occupancy::Block;

/// A launch of one kernel, with its own copy of the parameters.
#[derive(Clone)]
pub(super) struct Launch {
    function: Arc<Function>,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    parameters: Arc<[u8]>,
    cooperative: bool,
    /// The context's limit on the stack of a thread.
    stack_bytes: u32,
    cluster: Option<[u32; 3]>,
}

impl Launch {
    /// Runs the kernel to its end. A fault is its result, and is kept in the log.
    pub(super) fn run(&self, driver: &Driver) -> Result<()> {
        self.function.module.check_loaded()?;
        if self.cooperative {
            self.check_resident(driver)?;
        }
        self.check_cluster(driver)?;
        let launch = exec::Launch {
            module: &self.function.module.module,
            kernel: self.function.name(),
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.dynamic_shared,
            params: &self.parameters,
            dynamic_shared_limit: self.function.dynamic_shared_limit(),
            cooperative: self.cooperative,
            stack_bytes: self.stack_bytes,
            cluster: self.cluster,
        };
        match exec::launch(&launch, &driver.device, &driver.memory, &options()?) {
            Ok(report) => {
                coverage::ran(&driver.device, self.function.name());
                log::report(report);
                Ok(())
            }
            Err(fault) => {
                let error = Error::fault(&fault);
                log::fault(error.text.clone());
                Err(error)
            }
        }
    }

    /// A launch with an attribute for clusters must have a device and a grid that they fit.
    fn check_cluster(&self, driver: &Driver) -> Result<()> {
        let Some([x, y, z]) = self.cluster.filter(|sides| *sides != [1; 3]) else {
            return Ok(());
        };
        let most = driver.device.max_cluster;
        let text = format!("clusters of ({x}, {y}, {z}) blocks");
        if most == 1 {
            return Err(Error::unsupported(format!(
                "{text}: {} has none",
                driver.device.name
            )));
        }
        let blocks = x.saturating_mul(y).saturating_mul(z);
        if blocks == 0 || blocks > most {
            return Err(Error::value(format!(
                "{text}; {} allows 1 to {most}",
                driver.device.name
            )));
        }
        let [gx, gy, gz] = self.grid;
        if gx % x != 0 || gy % y != 0 || gz % z != 0 {
            return Err(Error::value(format!(
                "{text} do not divide a grid of ({gx}, {gy}, {gz})"
            )));
        }
        Ok(())
    }

    /// All blocks of a cooperative launch must be on the device at once.
    fn check_resident(&self, driver: &Driver) -> Result<()> {
        let shared = self.function.kernel()?.static_shared;
        let block = Block {
            threads: (self.block.iter())
                .fold(1, |product: u64, n| product.saturating_mul((*n).into())),
            shared: u64::from(shared) + u64::from(self.dynamic_shared),
            registers: self.function.registers(),
        };
        let device = &driver.device;
        let most = u64::from(device.multiprocessors) * u64::from(block.resident(device).0);
        let blocks =
            (self.grid.iter()).fold(1u64, |product, n| product.saturating_mul((*n).into()));
        if blocks <= most {
            return Ok(());
        }
        Err(Error::new(
            code::COOPERATIVE_LAUNCH_TOO_LARGE,
            format!(
                "{}: a cooperative launch of {blocks} blocks; {} holds {most} of this size at once",
                self.function.name(),
                device.name
            ),
        ))
    }
}

/// The bytes of a kernel's parameters, from either form.
///
/// # Safety
/// As for `cuLaunchKernel`: `pointers` is null or has a pointer to each parameter's value; `extra`
/// is null or a list of key and value that ends with the key 0.
unsafe fn parameters(
    kernel: &Kernel,
    pointers: &In<HostPtr>,
    extra: &In<HostPtr>,
) -> Result<Vec<u8>> {
    let size = kernel.param_bytes() as usize;
    let mut bytes = vec![0; size];
    match (pointers.is_null(), extra.is_null()) {
        (false, false) => {
            let text = "parameters were given as pointers and as a buffer: only one may be";
            return Err(Error::value(text));
        }
        (true, true) if kernel.params.is_empty() => {}
        (true, true) => {
            let (name, count) = (&kernel.name, kernel.params.len());
            return Err(Error::value(format!(
                "{name} has {count} parameters, none were given"
            )));
        }
        (false, true) => {
            // SAFETY: there is a pointer for each parameter (this function's contract).
            let pointers = unsafe { pointers.list(kernel.params.len()) }?;
            for (parameter, pointer) in kernel.params.iter().zip(pointers) {
                let (start, len) = (parameter.offset as usize, parameter.size as usize);
                // SAFETY: it points to a value of the parameter's size (this function's contract).
                let value = unsafe { pointer.bytes(len) }.map_err(|error| {
                    let (name, text) = (&parameter.name, error.text);
                    Error::value(format!("parameter {name} of {}: {text}", kernel.name))
                })?;
                bytes[start..start + len].copy_from_slice(value);
            }
        }
        (true, false) => {
            // SAFETY: this function's contract.
            let given = unsafe { buffer(extra) }?;
            if given.len() < size {
                let (name, given) = (&kernel.name, given.len());
                return Err(Error::value(format!(
                    "{name} takes {size} bytes of parameters, the buffer has {given}"
                )));
            }
            bytes.copy_from_slice(&given[..size]);
        }
    }
    Ok(bytes)
}

/// The buffer of the `extra` form.
///
/// # Safety
/// `extra` is a list of key and value that ends with the key 0, as for `cuLaunchKernel`.
unsafe fn buffer<'a>(extra: &In<HostPtr>) -> Result<&'a [u8]> {
    const END: usize = 0;
    const POINTER: usize = 1;
    const SIZE: usize = 2;
    let (mut pointer, mut size) = (None, None);
    for at in (0..).step_by(2) {
        // SAFETY: the end of the list was not reached yet.
        let key = unsafe { extra.element(at) };
        if key.address() == END {
            break;
        }
        // SAFETY: a value follows each key but the last.
        let value = unsafe { extra.element(at + 1) };
        match key.address() {
            POINTER => pointer = Some(value),
            // SAFETY: the value of this key points to a `size_t`.
            SIZE => size = Some(unsafe { In::<usize>::from_pointer(value) }.get()?),
            other => {
                return Err(Error::value(format!(
                    "{other} is no key of launch parameters"
                )));
            }
        }
    }
    let (Some(pointer), Some(size)) = (pointer, size) else {
        return Err(Error::value(
            "the launch parameters lack their buffer or its size",
        ));
    };
    // SAFETY: the list says that the buffer has this size.
    unsafe { pointer.bytes(size) }
}

/// What all launching calls have in common.
struct Request<'a> {
    function: Handle,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    stream: Handle,
    pointers: &'a In<HostPtr>,
    extra: &'a In<HostPtr>,
    attributes: Attributes,
}

impl Request<'_> {
    /// # Safety
    /// As for [`parameters`].
    unsafe fn submit(&self) -> Result<()> {
        let (driver, context) = current()?;
        let function = driver.functions.get(self.function)?;
        let of_stream = stream(&driver, &context, self.stream)?.context;
        // the kernels of a library belong to every context
        if (function.module.context).is_some_and(|of_kernel| of_kernel != of_stream) {
            let text = format!(
                "{} and the stream belong to different contexts",
                function.name()
            );
            return Err(Error::new(code::INVALID_HANDLE, text));
        }
        // SAFETY: this function's contract.
        let bytes = unsafe { parameters(function.kernel()?, self.pointers, self.extra) }?;
        let launch = Launch {
            function,
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.dynamic_shared,
            parameters: bytes.into(),
            cooperative: self.attributes.cooperative,
            cluster: self.attributes.cluster,
            stack_bytes: context.stack_bytes(),
        };
        submit(&driver, &context, self.stream, Work::Launch(launch))
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared: u32,
    stream: Handle,
    pointers: In<HostPtr>,
    extra: In<HostPtr>,
) -> CUresult {
    let request = Request {
        function,
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        dynamic_shared,
        stream,
        pointers: &pointers,
        extra: &extra,
        attributes: Attributes::default(),
    };
    // SAFETY: C passes the parameters as `cuLaunchKernel` asks.
    call("cuLaunchKernel", || unsafe { request.submit() })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLaunchCooperativeKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared: u32,
    stream: Handle,
    pointers: In<HostPtr>,
) -> CUresult {
    let request = Request {
        function,
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        dynamic_shared,
        stream,
        pointers: &pointers,
        extra: &In::NULL,
        attributes: Attributes {
            cooperative: true,
            cluster: None,
        },
    };
    // SAFETY: C passes the parameters as `cuLaunchKernel` asks.
    call("cuLaunchCooperativeKernel", || unsafe { request.submit() })
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    pub(super) dynamic_shared: u32,
    stream: Handle,
    attributes: In<Attribute>,
    attribute_count: u32,
}

impl Config {
    /// Threads of a block, as many as an int holds.
    pub(super) fn threads(&self) -> i32 {
        let threads = (self.block.iter()).fold(1u32, |product, n| product.saturating_mul(*n));
        i32::try_from(threads).unwrap_or(i32::MAX)
    }

    /// What the attributes ask for; an error if one is not emulated.
    pub(super) fn attributes(&self) -> Result<Attributes> {
        // SAFETY: C passes as many attributes as it says.
        asked(&unsafe { self.attributes.list(self.attribute_count as usize) }?)
    }
}

/// What the attributes of a launch ask for that matters here.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    cooperative: bool,
    /// Blocks of a cluster along x, y and z.
    pub(super) cluster: Option<[u32; 3]>,
}

/// `CUlaunchAttribute`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attribute {
    id: u32,
    _padding: u32,
    value: Value,
}

/// `CUlaunchAttributeValue`: the first words of its 64 bytes are all that is read.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Value([u32; 16]);

fn asked(attributes: &[Attribute]) -> Result<Attributes> {
    // `CUlaunchAttributeID`.
    const COOPERATIVE: u32 = 2;
    const CLUSTER_DIMENSION: u32 = 4;
    const PROGRAMMATIC_EVENT: u32 = 7;
    const LAUNCH_COMPLETION_EVENT: u32 = 12;
    const DEVICE_UPDATABLE: u32 = 13;
    let mut asked = Attributes::default();
    for attribute in attributes {
        let [x, y, z, ..] = attribute.value.0;
        match attribute.id {
            COOPERATIVE => asked.cooperative = x != 0,
            CLUSTER_DIMENSION => asked.cluster = Some([x, y, z]),
            PROGRAMMATIC_EVENT | LAUNCH_COMPLETION_EVENT | DEVICE_UPDATABLE => {
                let text = format!("launch attribute {} is not emulated", attribute.id);
                return Err(Error::unsupported(text));
            }
            // Priorities, cache policies and the like are hints that change no result.
            _ => {}
        }
    }
    Ok(asked)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuLaunchKernelEx(
    config: In<Config>,
    function: Handle,
    pointers: In<HostPtr>,
    extra: In<HostPtr>,
) -> CUresult {
    call("cuLaunchKernelEx", || {
        let config = config.get()?;
        let request = Request {
            function,
            grid: config.grid,
            block: config.block,
            dynamic_shared: config.dynamic_shared,
            stream: config.stream,
            pointers: &pointers,
            extra: &extra,
            attributes: config.attributes()?,
        };
        // SAFETY: C passes the parameters as `cuLaunchKernel` asks.
        unsafe { request.submit() }
    })
}
