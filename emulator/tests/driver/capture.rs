//! Stream capture and graphs: replay, several streams, and what spoils a capture.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::{
    self, CUgraphInstantiate_flags, CUgraphNodeType, CUresult, CUstreamCaptureMode,
    CUstreamCaptureStatus,
};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, DevicePtr, DriverError,
    LaunchConfig, PushKernelArg,
};

use crate::{assert_error, context, kernel};

const LOCAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
const NO_FLAGS: CUgraphInstantiate_flags = CUgraphInstantiate_flags(0);

/// A context of its own: while one of its streams captures, other tests could not synchronise it.
fn untracked() -> Arc<CudaContext> {
    drop(context()); // installs the emulator; dropping it makes it current, so it goes first
    let mut own = null_mut();
    // SAFETY: the pointer is valid to write; the context is new and handed over, and each test uses
    // its memory on streams that it orders itself.
    unsafe {
        sys::cuCtxCreate_v4(&raw mut own, null_mut(), 0, 0)
            .result()
            .unwrap();
        let context = CudaContext::from_raw_context(0, 0, own).unwrap();
        context.disable_event_tracking();
        context
    }
}

fn add(
    stream: &CudaStream,
    add: &CudaFunction,
    [a, b]: [&CudaSlice<f32>; 2],
    c: &CudaSlice<f32>,
) -> Result<(), DriverError> {
    let (n, stream_of_c) = (c.len() as u32, c.stream());
    let c = c.device_ptr(stream_of_c).0;
    let mut launch = stream.launch_builder(add);
    launch.arg(a).arg(b).arg(&c).arg(&n);
    // SAFETY: the kernel takes these arguments; the emulator checks its accesses.
    unsafe { launch.launch(LaunchConfig::for_num_elems(n)) }.map(drop)
}

fn end(stream: &Arc<CudaStream>) -> Result<CudaGraph, DriverError> {
    Ok(stream.end_capture(NO_FLAGS)?.expect("a graph"))
}

#[test]
fn a_graph_repeats_what_was_captured() {
    let context = untracked();
    let stream = context.new_stream().unwrap();
    let kernel = kernel(&context, "vector_add");
    let mut a = stream.clone_htod(&[1.0f32; 100]).unwrap();
    let mut sum = stream.clone_htod(&[0.0f32; 100]).unwrap();
    let mut copy = stream.clone_htod(&[0.0f32; 100]).unwrap();
    stream.begin_capture(LOCAL).unwrap();
    let active = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE;
    assert_eq!(stream.capture_status(), Ok(active));
    add(&stream, &kernel, [&a, &sum], &sum).unwrap();
    stream.memcpy_dtod(&sum, &mut copy).unwrap();
    stream.memset_zeros(&mut a.slice_mut(..50)).unwrap();
    let graph = end(&stream).unwrap();
    let none = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    assert_eq!(stream.capture_status(), Ok(none));
    assert_eq!(
        stream.clone_dtoh(&sum).unwrap(),
        [0.0; 100],
        "nothing ran yet"
    );
    graph.upload().unwrap();
    graph.launch().unwrap();
    graph.launch().unwrap();
    let copy = stream.clone_dtoh(&copy).unwrap();
    assert_eq!(
        (copy[0], copy[99]),
        (1.0, 2.0),
        "the second run saw the memset of the first"
    );
    stream.memset_zeros(&mut sum).unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&sum).unwrap()[99], 1.0);
}

/// The types of a graph's nodes, and how many have no node before them.
fn shape(graph: &CudaGraph) -> (Vec<CUgraphNodeType>, usize) {
    let graph = graph.cu_graph();
    let (mut count, mut roots) = (0, 0);
    // SAFETY: null arrays ask for the numbers; then the array has as many elements.
    unsafe {
        sys::cuGraphGetNodes(graph, null_mut(), &raw mut count)
            .result()
            .unwrap();
        let mut nodes = vec![null_mut(); count];
        sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut count)
            .result()
            .unwrap();
        sys::cuGraphGetRootNodes(graph, null_mut(), &raw mut roots)
            .result()
            .unwrap();
        let kind = |node| {
            let mut kind = CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
            sys::cuGraphNodeGetType(node, &raw mut kind)
                .result()
                .unwrap();
            kind
        };
        (nodes.into_iter().map(kind).collect(), roots)
    }
}

#[test]
fn streams_fork_and_join_by_events() {
    use CUgraphNodeType as Type;
    let context = untracked();
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let kernel = kernel(&context, "vector_add");
    let one = first.clone_htod(&[1.0f32; 10]).unwrap();
    let two = first.clone_htod(&[2.0f32; 10]).unwrap();
    let left = first.alloc_zeros::<f32>(10).unwrap();
    let right = first.alloc_zeros::<f32>(10).unwrap();
    let sum = first.alloc_zeros::<f32>(10).unwrap();
    first.begin_capture(LOCAL).unwrap();
    second.wait(&first.record_event(None).unwrap()).unwrap();
    add(&first, &kernel, [&one, &one], &left).unwrap();
    add(&second, &kernel, [&two, &two], &right).unwrap();
    first.wait(&second.record_event(None).unwrap()).unwrap();
    add(&first, &kernel, [&left, &right], &sum).unwrap();
    let graph = end(&first).unwrap();
    assert_eq!(shape(&graph), (vec![Type::CU_GRAPH_NODE_TYPE_KERNEL; 3], 2));
    let (mut from, mut to, mut edges) = ([null_mut(); 4], [null_mut(); 4], 4);
    // SAFETY: the arrays have as many elements as the count says.
    unsafe {
        let (from, to) = (from.as_mut_ptr(), to.as_mut_ptr());
        let data = null_mut();
        let graph = graph.cu_graph();
        sys::cuGraphGetEdges_v2(graph, from, to, data, &raw mut edges)
            .result()
            .unwrap();
    }
    assert_eq!(edges, 2);
    assert_eq!(to[0], to[1], "both lead to the sum");
    assert_ne!(from[0], from[1]);
    graph.launch().unwrap();
    assert_eq!(first.clone_dtoh(&sum).unwrap(), [6.0; 10]);
    // The second stream left the capture with the first.
    assert_eq!(second.clone_dtoh(&right).unwrap(), [4.0; 10]);
}

#[test]
fn a_graph_within_a_capture_is_one_node() {
    let context = untracked();
    let stream = context.new_stream().unwrap();
    let mut data = stream.clone_htod(&[1u8; 16]).unwrap();
    stream.begin_capture(LOCAL).unwrap();
    stream.memset_zeros(&mut data.slice_mut(..8)).unwrap();
    let inner = end(&stream).unwrap();
    stream.begin_capture(LOCAL).unwrap();
    inner.launch().unwrap();
    let outer = end(&stream).unwrap();
    drop(inner);
    assert_eq!(
        shape(&outer),
        (vec![CUgraphNodeType::CU_GRAPH_NODE_TYPE_GRAPH], 1)
    );
    outer.launch().unwrap();
    let data = stream.clone_dtoh(&data).unwrap();
    assert_eq!((&data[..8], &data[8..]), (&[0; 8][..], &[1; 8][..]));
}

#[test]
fn a_fault_ends_a_replay() {
    let context = untracked();
    let stream = context.new_stream().unwrap();
    let kernel = kernel(&context, "vector_add");
    let short = stream.clone_htod(&[1.0f32; 4]).unwrap();
    let sum = stream.clone_htod(&[0.0f32; 8]).unwrap();
    stream.begin_capture(LOCAL).unwrap();
    add(&stream, &kernel, [&short, &short], &sum).unwrap();
    let graph = end(&stream).unwrap();
    let code = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    assert_error(graph.launch(), code, "past the 16-byte allocation");
}

/// Begins a capture, does something that it cannot hold, and checks that it is spoiled for good.
#[track_caller]
fn assert_spoils(
    code: CUresult,
    words: &str,
    act: impl FnOnce(&Arc<CudaStream>) -> Result<(), DriverError>,
) {
    let context = untracked();
    let stream = context.new_stream().unwrap();
    let mut data = stream.clone_htod(&[1u8; 16]).unwrap();
    stream.begin_capture(LOCAL).unwrap();
    assert_error(act(&stream), code, words);
    let spoiled = CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    assert_error(
        stream.memset_zeros(&mut data),
        spoiled,
        "was spoiled before",
    );
    assert_error(end(&stream), spoiled, words);
    stream.memset_zeros(&mut data).unwrap();
}

#[test]
fn what_a_capture_cannot_hold_spoils_it() {
    let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    assert_spoils(unsupported, "cuStreamSynchronize", |stream| {
        stream.synchronize()
    });
    assert_spoils(unsupported, "cuMemAllocAsync", |stream| {
        stream.alloc_zeros::<u8>(4).map(drop)
    });
    assert_spoils(unsupported, "cuMemAlloc is not permitted", |_| {
        let mut address = 0;
        // SAFETY: the pointer is valid to write.
        unsafe { sys::cuMemAlloc_v2(&raw mut address, 4).result() }
    });
    let isolation = CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    assert_spoils(isolation, "from outside the capture", |stream| {
        let other = stream.context().new_stream()?;
        stream.wait(&other.record_event(None)?)
    });
    let unmatched = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    assert_spoils(unmatched, "begun on another stream", |stream| {
        let other = stream.context().new_stream()?;
        other.wait(&stream.record_event(None)?)?;
        end(&other).map(drop)
    });
}

#[test]
fn blocking_streams_do_not_capture_beside_stream_0() {
    let context = untracked();
    let mut raw = null_mut();
    let mut address = 0;
    let flags = sys::CUstream_flags::CU_STREAM_DEFAULT as u32;
    // SAFETY: the pointers are valid to write; the emulator checks handles and addresses.
    let (spoiling, ended) = unsafe {
        sys::cuMemAlloc_v2(&raw mut address, 16).result().unwrap();
        sys::cuStreamCreate(&raw mut raw, flags).result().unwrap();
        sys::cuStreamBeginCapture_v2(raw, LOCAL).result().unwrap();
        let spoiling = sys::cuMemsetD8_v2(address, 0, 16).result();
        let mut graph = null_mut();
        let ended = sys::cuStreamEndCapture(raw, &raw mut graph).result();
        assert!(graph.is_null());
        sys::cuStreamDestroy_v2(raw).result().unwrap();
        sys::cuMemFree_v2(address).result().unwrap();
        (spoiling, ended)
    };
    let words = "stream 0 would wait for a stream that captures";
    assert_error(
        spoiling,
        CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
        words,
    );
    assert_error(
        ended,
        CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
        words,
    );
    let result = context.default_stream().begin_capture(LOCAL);
    let code = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    assert_error(result, code, "stream 0 cannot capture");
}

#[test]
fn a_stream_that_is_not_joined_is_missed() {
    let context = untracked();
    let (first, second) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let mut data = first.clone_htod(&[1u8; 16]).unwrap();
    first.begin_capture(LOCAL).unwrap();
    second.wait(&first.record_event(None).unwrap()).unwrap();
    second.memset_zeros(&mut data).unwrap();
    let code = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    assert_error(end(&first), code, "was not joined");
    assert_eq!(second.clone_dtoh(&data).unwrap(), [1; 16], "nothing ran");
}

#[test]
fn captured_events_cannot_be_waited_for() {
    let context = untracked();
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    stream.begin_capture(LOCAL).unwrap();
    let event = stream.record_event(None).unwrap();
    let code = CUresult::CUDA_ERROR_CAPTURED_EVENT;
    assert_error(event.synchronize(), code, "last recorded in a capture");
    end(&stream).unwrap();
    assert_error(other.wait(&event), code, "a capture that has ended");
    event.record(&stream).unwrap();
    event.synchronize().unwrap();
}

#[test]
fn flags_of_instantiation_are_checked() {
    let context = untracked();
    let stream = context.new_stream().unwrap();
    let device = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH;
    let free = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    for (flags, code) in [
        (device | free, CUresult::CUDA_ERROR_INVALID_VALUE),
        (device, CUresult::CUDA_ERROR_NOT_SUPPORTED),
        (
            CUgraphInstantiate_flags(1 << 20),
            CUresult::CUDA_ERROR_INVALID_VALUE,
        ),
    ] {
        stream.begin_capture(LOCAL).unwrap();
        assert_eq!(
            stream.end_capture(flags).err().map(|error| error.0),
            Some(code)
        );
    }
    stream.begin_capture(LOCAL).unwrap();
    assert!(stream.end_capture(free).unwrap().is_some());
}
