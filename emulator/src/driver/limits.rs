//! Limits and preferences of a context. All but the limit on the stack are kept and change nothing.

use std::sync::atomic::Ordering::Relaxed;

use super::context::current;
use super::error::{Error, code};
use super::ffi::{CUresult, Out, call, lock};

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetLimit(out: Out<usize>, limit: u32) -> CUresult {
    call("cuCtxGetLimit", || {
        let (_, context) = current()?;
        let value = lock(&context.limits).get(&limit).copied();
        out.set(value.ok_or_else(|| no_limit(limit))?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxSetLimit(limit: u32, value: usize) -> CUresult {
    call("cuCtxSetLimit", || {
        let (_, context) = current()?;
        let mut limits = lock(&context.limits);
        *limits.get_mut(&limit).ok_or_else(|| no_limit(limit))? = value;
        Ok(())
    })
}

fn no_limit(limit: u32) -> Error {
    Error::new(
        code::UNSUPPORTED_LIMIT,
        format!("CUlimit {limit} is not emulated"),
    )
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetCacheConfig(out: Out<i32>) -> CUresult {
    call("cuCtxGetCacheConfig", || {
        out.set(current()?.1.cache_config.load(Relaxed))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxSetCacheConfig(preference: i32) -> CUresult {
    call("cuCtxSetCacheConfig", || {
        current()?.1.cache_config.store(preference, Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetSharedMemConfig(out: Out<i32>) -> CUresult {
    call("cuCtxGetSharedMemConfig", || {
        out.set(current()?.1.shared_config.load(Relaxed))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxSetSharedMemConfig(preference: i32) -> CUresult {
    call("cuCtxSetSharedMemConfig", || {
        current()?.1.shared_config.store(preference, Relaxed);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxGetStreamPriorityRange(
    least: Out<i32>,
    greatest: Out<i32>,
) -> CUresult {
    call("cuCtxGetStreamPriorityRange", || {
        current()?;
        least.set_if_wanted(*super::stream::PRIORITIES.end());
        greatest.set_if_wanted(*super::stream::PRIORITIES.start());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuCtxResetPersistingL2Cache() -> CUresult {
    call("cuCtxResetPersistingL2Cache", || current().map(drop))
}
