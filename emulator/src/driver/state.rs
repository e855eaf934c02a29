//! The one driver of the process: the emulated device and everything alive on it.

use std::sync::{Arc, Mutex, RwLock};

use super::capture::Captures;
use super::context::{Context, Primary};
use super::error::{Error, Result, code};
use super::event::Event;
use super::ffi::{Handle, read, write};
use super::function::Function;
use super::graph::{Executable, Graph};
use super::handle::Table;
use super::host::HostBlocks;
use super::memory::Allocations;
use super::module::{LoadedModule, Programs};
use super::pool::Pool;
use super::settings::config;
use super::stream::Stream;
use crate::device::Device;
use crate::memory::Memory;

/// The emulated device and what lives on it.
pub(super) struct Driver {
    pub(super) device: Device,
    pub(super) memory: Memory,
    pub(super) allocations: Allocations,
    pub(super) host: HostBlocks,
    pub(super) contexts: Table<Context>,
    pub(super) primary: Mutex<Primary>,
    pub(super) programs: Programs,
    pub(super) modules: Table<LoadedModule>,
    pub(super) functions: Table<Function>,
    pub(super) streams: Table<Stream>,
    pub(super) events: Table<Event>,
    pub(super) captures: Mutex<Captures>,
    pub(super) graphs: Table<Graph>,
    pub(super) executables: Table<Executable>,
    pub(super) pools: Table<Pool>,
    /// The pool that always exists.
    pub(super) default_pool: Handle,
    /// The pool that `cuMemAllocAsync` takes from.
    pub(super) current_pool: Mutex<Handle>,
}

/// `None` before `cuInit`.
static DRIVER: RwLock<Option<Arc<Driver>>> = RwLock::new(None);

/// Makes the driver unless there is one.
pub(super) fn init() -> Result<()> {
    let device = config()?.device;
    write(&DRIVER).get_or_insert_with(|| Arc::new(Driver::new(device)));
    Ok(())
}

/// The driver.
pub(super) fn driver() -> Result<Arc<Driver>> {
    (read(&DRIVER).clone()).ok_or_else(|| {
        Error::new(
            code::NOT_INITIALIZED,
            "call cuInit before any other driver function",
        )
    })
}

/// Puts another device in place of the present one, if nothing is alive on that.
pub(super) fn replace_device(device: &Device) -> Result<()> {
    let mut driver = write(&DRIVER);
    let Some(present) = &*driver else {
        return Ok(());
    };
    if !present.contexts.is_empty() {
        let name = &present.device.name;
        return Err(Error::new(
            code::NOT_PERMITTED,
            format!("{name} cannot be replaced while a context exists: drop all contexts first"),
        ));
    }
    *driver = Some(Arc::new(Driver::new(device.clone())));
    Ok(())
}

impl Driver {
    pub(super) fn new(device: Device) -> Driver {
        let pools = Table::new("memory pool");
        let (default_pool, _) = pools.insert(|_| Pool::default());
        Driver {
            memory: Memory::new(device.total_memory),
            device,
            allocations: Allocations::default(),
            host: HostBlocks::default(),
            contexts: Table::new("context"),
            primary: Mutex::default(),
            programs: Programs::default(),
            modules: Table::new("module"),
            functions: Table::new("function"),
            streams: Table::new("stream"),
            events: Table::new("event"),
            captures: Mutex::default(),
            graphs: Table::new("graph"),
            executables: Table::new("executable graph"),
            pools,
            default_pool,
            current_pool: Mutex::new(default_pool),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::context::{cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRetain};
    use super::super::device::{cuDeviceGetCount, cuInit};
    use super::super::ffi::Out;
    use super::super::settings::{Settings, configure};
    use super::*;

    /// The only unit test that starts the driver of the process.
    #[test]
    fn the_device_can_change_while_nothing_is_alive_on_it() {
        let pose = |arch: &str, memory| {
            configure(&Settings {
                arch: Some(arch.to_owned()),
                memory,
                ..Settings::default()
            })
        };
        let mut count = 0;
        assert_eq!(cuDeviceGetCount(Out::to(&mut count)), code::NOT_INITIALIZED);
        pose("sm_90", Some(1 << 20)).unwrap();
        assert_eq!(cuInit(1), code::INVALID_VALUE);
        assert_eq!(cuInit(0), code::SUCCESS);
        assert_eq!(cuDeviceGetCount(Out::to(&mut count)), code::SUCCESS);
        let present = || driver().unwrap().device.clone();
        assert_eq!((present().arch(), present().total_memory), (90, 1 << 20));

        let mut context = 0;
        for _ in 0..2 {
            assert_eq!(
                cuDevicePrimaryCtxRetain(Out::to(&mut context), 0),
                code::SUCCESS
            );
        }
        for left in [1, 0] {
            let refused = pose("sm_80", None).unwrap_err();
            assert_eq!(
                refused.code,
                code::NOT_PERMITTED,
                "{left}: {}",
                refused.text
            );
            pose("sm_90", None).unwrap();
            assert_eq!(cuDevicePrimaryCtxRelease_v2(0), code::SUCCESS);
        }
        assert_eq!(cuDevicePrimaryCtxRelease_v2(0), code::INVALID_CONTEXT);
        pose("sm_80", None).unwrap();
        assert_eq!((present().arch(), present().total_memory), (80, 1 << 20));
    }
}
