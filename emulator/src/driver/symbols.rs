//! Every symbol of the driver: which are emulated and where, and which only say that they are not.
//!
//! The list is the union of what cudarc 0.19.10 can ask for over all versions of CUDA: it resolves
//! symbols one by one and panics on the first that is missing, so all must be there.

use std::ffi::c_void;

use super::error::{Error, Result, code};
use super::ffi::{CUresult, Out, Text, call};
use super::log::once;

/// What a function does.
#[cfg(test)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// What it does on hardware, as far as the emulator has such a thing.
    Emulated,
    /// It checks its arguments and does nothing: a hint, or a setting that changes no result.
    Accepted,
    /// It returns `CUDA_ERROR_NOT_SUPPORTED` and says its name.
    Refused,
}

macro_rules! symbols {
    (
        emulated { $($area:ident: $($name:ident)+;)+ }
        accepted { $($near:ident: $($idle:ident)+;)+ }
        others { $($other:ident)+ }
    ) => {
        /// The address of a function by its exact name.
        fn address(name: &str) -> Option<*mut c_void> {
            let address = match name {
                $($(stringify!($name) => super::$area::$name as *const (),)+)+
                $($(stringify!($idle) => super::$near::$idle as *const (),)+)+
                $(stringify!($other) => others::$other as *const (),)+
                _ => return None,
            };
            Some(address.cast_mut().cast())
        }

        /// Functions that are not emulated. C leaves arguments to the caller, so that one shape
        /// serves all.
        mod others {
            use super::{CUresult, unsupported};

            $(
                #[unsafe(no_mangle)]
                pub(super) extern "C" fn $other() -> CUresult {
                    unsupported(stringify!($other), concat!(stringify!($other), " is not emulated"))
                }
            )+
        }

        /// Every symbol that this driver exports, with its state and its file.
        #[cfg(test)]
        const ALL: &[(&str, State, &str)] = &[
            $($((stringify!($name), State::Emulated, stringify!($area)),)+)+
            $($((stringify!($idle), State::Accepted, stringify!($near)),)+)+
            $((stringify!($other), State::Refused, ""),)+
        ];
    };
}

/// The answer of a function that is not emulated; it says so once.
fn unsupported(name: &'static str, text: &'static str) -> CUresult {
    call(name, || {
        once(text);
        Err(Error::unsupported(text))
    })
}

symbols! {
    emulated {
        error:
            cuGetErrorName cuGetErrorString;
        device:
            cuInit cuDriverGetVersion cuDeviceGet cuDeviceGetCount cuDeviceGetName cuDeviceGetUuid
            cuDeviceGetUuid_v2 cuDeviceTotalMem_v2 cuDeviceComputeCapability cuDeviceGetAttribute
            cuDeviceGetProperties cuDeviceGetPCIBusId cuDeviceGetByPCIBusId cuDeviceCanAccessPeer
            cuDeviceGetP2PAttribute cuDeviceGetExecAffinitySupport;
        context:
            cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2
            cuDevicePrimaryCtxGetState cuDevicePrimaryCtxSetFlags_v2 cuCtxCreate_v2 cuCtxCreate_v3
            cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxSetCurrent cuCtxGetCurrent cuCtxPushCurrent_v2
            cuCtxPopCurrent_v2 cuCtxGetDevice cuCtxGetDevice_v2 cuCtxGetFlags cuCtxSetFlags
            cuCtxGetId cuCtxGetApiVersion cuCtxSynchronize cuCtxSynchronize_v2 cuCtxEnablePeerAccess
            cuCtxDisablePeerAccess;
        limits:
            cuCtxGetLimit cuCtxSetLimit cuCtxGetCacheConfig cuCtxGetSharedMemConfig
            cuCtxGetStreamPriorityRange;
        memory:
            cuMemAlloc_v2 cuMemAllocPitch_v2 cuMemFree_v2 cuMemAllocAsync cuMemAllocFromPoolAsync
            cuMemFreeAsync cuMemGetInfo_v2 cuMemGetAddressRange_v2;
        pool:
            cuMemPoolCreate cuMemPoolDestroy cuMemPoolGetAttribute cuMemPoolSetAttribute
            cuMemPoolSetAccess cuMemPoolGetAccess cuDeviceGetDefaultMemPool cuDeviceGetMemPool
            cuDeviceSetMemPool;
        host:
            cuMemAllocHost_v2 cuMemHostAlloc cuMemFreeHost cuMemHostRegister_v2 cuMemHostUnregister
            cuMemHostGetFlags cuMemHostGetDevicePointer_v2;
        managed:
            cuMemAllocManaged;
        pointer:
            cuPointerGetAttribute cuPointerGetAttributes;
        copy:
            cuMemcpy cuMemcpyAsync cuMemcpyHtoD_v2 cuMemcpyHtoDAsync_v2 cuMemcpyDtoH_v2
            cuMemcpyDtoHAsync_v2 cuMemcpyDtoD_v2 cuMemcpyDtoDAsync_v2 cuMemcpyPeer cuMemcpyPeerAsync
            cuMemcpy2D_v2 cuMemcpy2DUnaligned_v2 cuMemcpy2DAsync_v2;
        memset:
            cuMemsetD8_v2 cuMemsetD8Async cuMemsetD16_v2 cuMemsetD16Async cuMemsetD32_v2
            cuMemsetD32Async cuMemsetD2D8_v2 cuMemsetD2D8Async cuMemsetD2D16_v2 cuMemsetD2D16Async
            cuMemsetD2D32_v2 cuMemsetD2D32Async;
        module:
            cuModuleLoadData cuModuleLoadFatBinary cuModuleLoadDataEx cuModuleLoad cuModuleUnload
            cuModuleGetFunction cuModuleGetGlobal_v2 cuModuleGetFunctionCount
            cuModuleEnumerateFunctions cuModuleGetLoadingMode cuLibraryLoadData
            cuLibraryLoadFromFile cuLibraryUnload cuLibraryGetKernel cuLibraryGetKernelCount
            cuLibraryEnumerateKernels cuLibraryGetModule cuLibraryGetGlobal;
        function:
            cuFuncGetAttribute cuKernelGetAttribute cuFuncSetAttribute cuKernelSetAttribute
            cuFuncGetModule cuKernelGetLibrary cuKernelGetFunction cuFuncGetName cuKernelGetName
            cuFuncGetParamInfo cuKernelGetParamInfo cuFuncGetParamCount cuKernelGetParamCount
            cuFuncIsLoaded;
        launch:
            cuLaunchKernel cuLaunchCooperativeKernel cuLaunchKernelEx;
        occupancy:
            cuOccupancyMaxActiveBlocksPerMultiprocessor
            cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags
            cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxPotentialBlockSize
            cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyMaxActiveClusters
            cuOccupancyMaxPotentialClusterSize;
        stream:
            cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamSynchronize
            cuStreamQuery cuStreamGetFlags cuStreamGetPriority cuStreamGetId cuStreamGetCtx
            cuStreamGetCtx_v2 cuStreamGetDevice cuLaunchHostFunc cuLaunchHostFunc_v2
            cuStreamAddCallback cuStreamWaitEvent;
        event:
            cuEventCreate cuEventDestroy_v2 cuEventRecord cuEventRecordWithFlags cuEventQuery
            cuEventSynchronize cuEventElapsedTime cuEventElapsedTime_v2;
        capture:
            cuStreamBeginCapture_v2 cuStreamEndCapture cuStreamIsCapturing cuStreamGetCaptureInfo
            cuStreamGetCaptureInfo_v2 cuStreamGetCaptureInfo_v3 cuThreadExchangeStreamCaptureMode;
        graph:
            cuGraphInstantiateWithFlags cuGraphInstantiate_v2 cuGraphInstantiateWithParams
            cuGraphExecGetFlags cuGraphExecDestroy cuGraphLaunch cuGraphDestroy cuGraphClone
            cuGraphGetNodes cuGraphGetRootNodes cuGraphGetEdges cuGraphGetEdges_v2
            cuGraphNodeGetType cuGraphNodeGetDependencies;
        tensor_map:
            cuTensorMapEncodeTiled;
        symbols:
            cuGetProcAddress cuGetProcAddress_v2;
    }
    accepted {
        device:
            cuProfilerStart cuProfilerStop;
        limits:
            cuCtxSetCacheConfig cuCtxSetSharedMemConfig cuCtxResetPersistingL2Cache;
        pool:
            cuMemPoolTrimTo;
        pointer:
            cuPointerSetAttribute;
        managed:
            cuStreamAttachMemAsync cuMemPrefetchAsync cuMemPrefetchAsync_v2 cuMemAdvise
            cuMemAdvise_v2;
        function:
            cuFuncSetCacheConfig cuKernelSetCacheConfig cuFuncSetSharedMemConfig cuFuncLoad;
        graph:
            cuGraphUpload;
    }
    others {
        cuArray3DCreate_v2 cuArray3DGetDescriptor_v2 cuArrayCreate_v2 cuArrayDestroy
        cuArrayGetDescriptor_v2 cuArrayGetMemoryRequirements cuArrayGetPlane
        cuArrayGetSparseProperties cuCoredumpDeregisterCompleteCallback
        cuCoredumpDeregisterStartCallback cuCoredumpGetAttribute cuCoredumpGetAttributeGlobal
        cuCoredumpRegisterCompleteCallback cuCoredumpRegisterStartCallback cuCoredumpSetAttribute
        cuCoredumpSetAttributeGlobal cuCtxAttach cuCtxDetach cuCtxFromGreenCtx cuCtxGetDevResource
        cuCtxGetExecAffinity cuCtxRecordEvent cuCtxWaitEvent cuDestroyExternalMemory
        cuDestroyExternalSemaphore cuDevResourceGenerateDesc cuDevSmResourceSplit
        cuDevSmResourceSplitByCount cuDeviceGetCliqueCount cuDeviceGetCliqueInfo
        cuDeviceGetDevResource cuDeviceGetFabricClusterUuid cuDeviceGetGraphMemAttribute
        cuDeviceGetHostAtomicCapabilities cuDeviceGetLuid cuDeviceGetP2PAtomicCapabilities
        cuDeviceGetTexture1DLinearMaxWidth cuDeviceGraphMemTrim cuDeviceRegisterAsyncNotification
        cuDeviceSetGraphMemAttribute cuDeviceUnregisterAsyncNotification
        cuExternalMemoryGetMappedBuffer cuExternalMemoryGetMappedMipmappedArray
        cuFlushGPUDirectRDMAWrites cuFuncSetBlockShape cuFuncSetSharedSize cuGetExportTable
        cuGraphAddBatchMemOpNode cuGraphAddChildGraphNode cuGraphAddDependencies
        cuGraphAddDependencies_v2 cuGraphAddEmptyNode cuGraphAddEventRecordNode
        cuGraphAddEventWaitNode cuGraphAddExternalSemaphoresSignalNode
        cuGraphAddExternalSemaphoresWaitNode cuGraphAddHostNode cuGraphAddKernelNode
        cuGraphAddKernelNode_v2 cuGraphAddMemAllocNode cuGraphAddMemFreeNode cuGraphAddMemcpyNode
        cuGraphAddMemsetNode cuGraphAddNode cuGraphAddNode_v2 cuGraphAddNode_v3
        cuGraphBatchMemOpNodeGetParams cuGraphBatchMemOpNodeSetParams cuGraphChildGraphNodeGetGraph
        cuGraphConditionalHandleCreate cuGraphCreate cuGraphDebugDotPrint cuGraphDestroyNode
        cuGraphEventRecordNodeGetEvent cuGraphEventRecordNodeSetEvent cuGraphEventWaitNodeGetEvent
        cuGraphEventWaitNodeSetEvent cuGraphExecBatchMemOpNodeSetParams
        cuGraphExecChildGraphNodeSetParams cuGraphExecEventRecordNodeSetEvent
        cuGraphExecEventWaitNodeSetEvent cuGraphExecExternalSemaphoresSignalNodeSetParams
        cuGraphExecExternalSemaphoresWaitNodeSetParams cuGraphExecGetId cuGraphExecHostNodeSetParams
        cuGraphExecKernelNodeSetParams cuGraphExecKernelNodeSetParams_v2
        cuGraphExecMemcpyNodeSetParams cuGraphExecMemsetNodeSetParams cuGraphExecNodeSetParams
        cuGraphExecUpdate cuGraphExecUpdate_v2 cuGraphExternalSemaphoresSignalNodeGetParams
        cuGraphExternalSemaphoresSignalNodeSetParams cuGraphExternalSemaphoresWaitNodeGetParams
        cuGraphExternalSemaphoresWaitNodeSetParams cuGraphGetId cuGraphHostNodeGetParams
        cuGraphHostNodeSetParams cuGraphKernelNodeCopyAttributes cuGraphKernelNodeGetAttribute
        cuGraphKernelNodeGetParams cuGraphKernelNodeGetParams_v2 cuGraphKernelNodeSetAttribute
        cuGraphKernelNodeSetParams cuGraphKernelNodeSetParams_v2 cuGraphMemAllocNodeGetParams
        cuGraphMemFreeNodeGetParams cuGraphMemcpyNodeGetParams cuGraphMemcpyNodeSetParams
        cuGraphMemsetNodeGetParams cuGraphMemsetNodeSetParams cuGraphNodeFindInClone
        cuGraphNodeGetContainingGraph cuGraphNodeGetDependencies_v2 cuGraphNodeGetDependentNodes
        cuGraphNodeGetDependentNodes_v2 cuGraphNodeGetEnabled cuGraphNodeGetLocalId
        cuGraphNodeGetParams cuGraphNodeGetToolsId cuGraphNodeSetEnabled cuGraphNodeSetParams
        cuGraphNodeSetParams_v2 cuGraphReleaseUserObject cuGraphRemoveDependencies
        cuGraphRemoveDependencies_v2 cuGraphRetainUserObject cuGraphicsMapResources
        cuGraphicsResourceGetMappedMipmappedArray cuGraphicsResourceGetMappedPointer_v2
        cuGraphicsResourceSetMapFlags_v2 cuGraphicsSubResourceGetMappedArray
        cuGraphicsUnmapResources cuGraphicsUnregisterResource cuGreenCtxCreate cuGreenCtxDestroy
        cuGreenCtxGetDevResource cuGreenCtxGetId cuGreenCtxRecordEvent cuGreenCtxStreamCreate
        cuGreenCtxWaitEvent cuImportExternalMemory cuImportExternalSemaphore cuIpcCloseMemHandle
        cuIpcGetEventHandle cuIpcGetMemHandle cuIpcOpenEventHandle cuIpcOpenMemHandle_v2 cuLaunch
        cuLaunchCooperativeKernelMultiDevice cuLaunchGrid cuLaunchGridAsync cuLibraryGetManaged
        cuLibraryGetUnifiedFunction cuLinkAddData_v2 cuLinkAddFile_v2 cuLinkComplete cuLinkCreate_v2
        cuLinkDestroy cuLogicalEndpointAddDevice cuLogicalEndpointBindAddr cuLogicalEndpointBindMem
        cuLogicalEndpointCreate cuLogicalEndpointDestroy cuLogicalEndpointExport
        cuLogicalEndpointGetLimits cuLogicalEndpointIdRelease cuLogicalEndpointIdReserve
        cuLogicalEndpointImport cuLogicalEndpointQuery cuLogicalEndpointUnbind cuLogsCurrent
        cuLogsDumpToFile cuLogsDumpToMemory cuLogsRegisterCallback cuLogsUnregisterCallback
        cuMemAddressFree cuMemAddressReserve cuMemBatchDecompressAsync cuMemCreate
        cuMemDiscardAndPrefetchBatchAsync cuMemDiscardBatchAsync cuMemExportToShareableHandle
        cuMemGetAccess cuMemGetAllocationGranularity cuMemGetAllocationPropertiesFromHandle
        cuMemGetDefaultMemPool cuMemGetHandleForAddressRange cuMemGetLocationInfo cuMemGetMemPool
        cuMemImportFromShareableHandle cuMemMap cuMemMapArrayAsync cuMemPoolExportPointer
        cuMemPoolExportToShareableHandle cuMemPoolImportFromShareableHandle cuMemPoolImportPointer
        cuMemPrefetchBatchAsync cuMemRangeGetAttribute cuMemRangeGetAttributes cuMemRelease
        cuMemRetainAllocationHandle cuMemSetAccess cuMemSetMemPool cuMemUnmap cuMemcpy3DAsync_v2
        cuMemcpy3DBatchAsync cuMemcpy3DBatchAsync_v2 cuMemcpy3DPeer cuMemcpy3DPeerAsync
        cuMemcpy3DWithAttributesAsync cuMemcpy3D_v2 cuMemcpyAtoA_v2 cuMemcpyAtoD_v2
        cuMemcpyAtoHAsync_v2 cuMemcpyAtoH_v2 cuMemcpyBatchAsync cuMemcpyBatchAsync_v2
        cuMemcpyDtoA_v2 cuMemcpyHtoAAsync_v2 cuMemcpyHtoA_v2 cuMemcpyWithAttributesAsync
        cuMipmappedArrayCreate cuMipmappedArrayDestroy cuMipmappedArrayGetLevel
        cuMipmappedArrayGetMemoryRequirements cuMipmappedArrayGetSparseProperties cuModuleGetSurfRef
        cuModuleGetTexRef cuMulticastAddDevice cuMulticastBindAddr cuMulticastBindAddr_v2
        cuMulticastBindMem cuMulticastBindMem_v2 cuMulticastCreate cuMulticastGetGranularity
        cuMulticastUnbind cuParamSetSize cuParamSetTexRef cuParamSetf cuParamSeti cuParamSetv
        cuProfilerInitialize cuSignalExternalSemaphoresAsync cuStreamBatchMemOp
        cuStreamBatchMemOp_v2 cuStreamBeginCaptureToCig cuStreamBeginCaptureToGraph
        cuStreamBeginRecaptureToGraph cuStreamCopyAttributes cuStreamEndCaptureToCig
        cuStreamGetAttribute cuStreamGetDevResource cuStreamGetGreenCtx cuStreamSetAttribute
        cuStreamUpdateCaptureDependencies cuStreamUpdateCaptureDependencies_v2 cuStreamWaitValue32
        cuStreamWaitValue32_v2 cuStreamWaitValue64 cuStreamWaitValue64_v2 cuStreamWriteValue32
        cuStreamWriteValue32_v2 cuStreamWriteValue64 cuStreamWriteValue64_v2 cuSurfObjectCreate
        cuSurfObjectDestroy cuSurfObjectGetResourceDesc cuSurfRefGetArray cuSurfRefSetArray
        cuTensorMapEncodeIm2col cuTensorMapEncodeIm2colWide cuTensorMapReplaceAddress
        cuTexObjectCreate cuTexObjectDestroy cuTexObjectGetResourceDesc
        cuTexObjectGetResourceViewDesc cuTexObjectGetTextureDesc cuTexRefCreate cuTexRefDestroy
        cuTexRefGetAddressMode cuTexRefGetAddress_v2 cuTexRefGetArray cuTexRefGetBorderColor
        cuTexRefGetFilterMode cuTexRefGetFlags cuTexRefGetFormat cuTexRefGetMaxAnisotropy
        cuTexRefGetMipmapFilterMode cuTexRefGetMipmapLevelBias cuTexRefGetMipmapLevelClamp
        cuTexRefGetMipmappedArray cuTexRefSetAddress2D_v3 cuTexRefSetAddressMode
        cuTexRefSetAddress_v2 cuTexRefSetArray cuTexRefSetBorderColor cuTexRefSetFilterMode
        cuTexRefSetFlags cuTexRefSetFormat cuTexRefSetMaxAnisotropy cuTexRefSetMipmapFilterMode
        cuTexRefSetMipmapLevelBias cuTexRefSetMipmapLevelClamp cuTexRefSetMipmappedArray
        cuUserObjectCreate cuUserObjectRelease cuUserObjectRetain cuWaitExternalSemaphoresAsync
    }
}

/// The CUDA version that a variant came with, where a name has more than one variant: before that,
/// callers of the plain name expect the one before.
#[rustfmt::skip]
const SINCE: &[(&str, i32)] = &[
    ("cuCtxCreate_v3", 11_040), ("cuCtxCreate_v4", 12_050), ("cuCtxGetDevice_v2", 13_000),
    ("cuCtxSynchronize_v2", 13_000), ("cuEventElapsedTime_v2", 12_080),
    ("cuGetProcAddress_v2", 12_000), ("cuGraphAddDependencies_v2", 12_030),
    ("cuGraphAddKernelNode_v2", 12_000), ("cuGraphAddNode_v2", 12_030),
    ("cuGraphAddNode_v3", 13_010), ("cuGraphExecKernelNodeSetParams_v2", 12_000),
    ("cuGraphExecUpdate_v2", 12_000), ("cuGraphGetEdges_v2", 12_030),
    ("cuGraphKernelNodeGetParams_v2", 12_000), ("cuGraphKernelNodeSetParams_v2", 12_000),
    ("cuGraphNodeGetDependencies_v2", 12_030), ("cuGraphNodeGetDependentNodes_v2", 12_030),
    ("cuGraphNodeSetParams_v2", 13_010), ("cuGraphRemoveDependencies_v2", 12_030),
    ("cuLaunchHostFunc_v2", 13_010), ("cuMemAdvise_v2", 12_020),
    ("cuMemPrefetchAsync_v2", 12_020), ("cuMemcpy3DBatchAsync_v2", 13_000),
    ("cuMemcpyBatchAsync_v2", 13_000), ("cuMulticastBindAddr_v2", 13_010),
    ("cuMulticastBindMem_v2", 13_010), ("cuStreamBatchMemOp_v2", 11_070),
    ("cuStreamGetCaptureInfo_v2", 11_030), ("cuStreamGetCaptureInfo_v3", 12_030),
    ("cuStreamGetCtx_v2", 12_050), ("cuStreamUpdateCaptureDependencies_v2", 12_030),
    ("cuStreamWaitValue32_v2", 11_070), ("cuStreamWaitValue64_v2", 11_070),
    ("cuStreamWriteValue32_v2", 11_070), ("cuStreamWriteValue64_v2", 11_070),
];

/// The newest variant of a symbol that a program of this CUDA version knows; the number of a variant
/// may be left out, as headers do.
fn lookup(symbol: &str, version: i32) -> Option<*mut c_void> {
    let variants = ["_v4", "_v3", "_v2", ""].map(|suffix| format!("{symbol}{suffix}"));
    let known = |name: &&String| {
        let since = SINCE.iter().find(|(late, _)| late == name);
        since.is_none_or(|(_, since)| *since <= version)
    };
    variants.iter().filter(known).find_map(|name| address(name))
}

fn find(symbol: &Text, version: i32, out: &Out<*mut c_void>, status: &Out<u32>) -> Result<()> {
    /// `CUdriverProcAddressQueryResult`.
    const SUCCESS: u32 = 0;
    const NOT_FOUND: u32 = 1;
    let symbol = symbol.get()?;
    let found = lookup(symbol, version);
    status.set_if_wanted(if found.is_some() { SUCCESS } else { NOT_FOUND });
    out.set(found.unwrap_or(std::ptr::null_mut()))?;
    match found {
        Some(_) => Ok(()),
        None => Err(Error::new(
            code::NOT_FOUND,
            format!("the driver has no `{symbol}`"),
        )),
    }
}

/// The flags choose between kinds of default stream, which all do their work at once here.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGetProcAddress(
    symbol: Text,
    out: Out<*mut c_void>,
    version: i32,
    _flags: u64,
) -> CUresult {
    call("cuGetProcAddress", || {
        find(&symbol, version, &out, &Out::NULL)
    })
}

/// As [`cuGetProcAddress`]; a symbol that is not there is told by the status, if that is wanted.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGetProcAddress_v2(
    symbol: Text,
    out: Out<*mut c_void>,
    version: i32,
    _flags: u64,
    status: Out<u32>,
) -> CUresult {
    call("cuGetProcAddress", || find(&symbol, version, &out, &status))
}

#[cfg(test)]
mod tests;
