//! Graphs that captures made: what they hold, instantiation, replay.

use std::sync::Arc;

use super::context::current;
use super::error::{Error, Result, code};
use super::ffi::{CUresult, Handle, Out, call};
use super::state::driver;
use super::stream::current_stream;
use super::work::{Work, submit};

/// One piece of captured work.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) handle: Handle,
    pub(super) work: Work,
    /// The nodes that come before it.
    pub(super) dependencies: Vec<Handle>,
}

/// A graph. It never changes once its capture has ended.
pub(super) struct Graph {
    /// In an order that they can run in.
    nodes: Arc<[Node]>,
}

impl Graph {
    pub(super) fn new(nodes: Vec<Node>) -> Graph {
        let nodes = nodes.into();
        Graph { nodes }
    }

    fn edges(&self) -> Vec<(Handle, Handle)> {
        let before = |node: &Node| {
            let to = node.handle;
            let edges = node.dependencies.iter().map(|from| (*from, to));
            edges.collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(before).collect()
    }
}

/// A graph that can be launched.
pub(super) struct Executable {
    work: Arc<[Work]>,
    flags: u64,
}

// Flags of instantiation.
const AUTO_FREE_ON_LAUNCH: u64 = 1;
const DEVICE_LAUNCH: u64 = 4;
const ALL_FLAGS: u64 = 15;

fn instantiate(out: &Out<Handle>, graph: Handle, flags: u64) -> Result<()> {
    let driver = driver()?;
    out.check()?;
    let graph = driver.graphs.get(graph)?;
    if flags & !ALL_FLAGS != 0 || flags & AUTO_FREE_ON_LAUNCH != 0 && flags & DEVICE_LAUNCH != 0 {
        let text = format!("{flags:#x} are no flags of an instantiation, or exclude each other");
        return Err(Error::value(text));
    }
    if flags & DEVICE_LAUNCH != 0 {
        return Err(Error::unsupported(
            "launching a graph from the device is not emulated",
        ));
    }
    let work = graph.nodes.iter().map(|node| node.work.clone()).collect();
    out.set(driver.executables.insert(|_| Executable { work, flags }).0)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphInstantiateWithFlags(
    out: Out<Handle>,
    graph: Handle,
    flags: u64,
) -> CUresult {
    call("cuGraphInstantiateWithFlags", || {
        instantiate(&out, graph, flags)
    })
}

/// The log stays untouched: an instantiation that fails says why through `cuGetErrorString`.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphInstantiate_v2(
    out: Out<Handle>,
    graph: Handle,
    _error_node: Out<Handle>,
    _log: Out<u8>,
    _log_bytes: usize,
) -> CUresult {
    call("cuGraphInstantiate", || instantiate(&out, graph, 0))
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct InstantiateParameters {
    flags: u64,
    upload_stream: Handle,
    error_node: Handle,
    result: u32,
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphInstantiateWithParams(
    out: Out<Handle>,
    graph: Handle,
    parameters: Out<InstantiateParameters>,
) -> CUresult {
    /// `CUDA_GRAPH_INSTANTIATE_SUCCESS` and `CUDA_GRAPH_INSTANTIATE_ERROR`.
    const SUCCESS: u32 = 0;
    const ERROR: u32 = 1;
    call("cuGraphInstantiateWithParams", || {
        let given = parameters.get()?;
        let done = instantiate(&out, graph, given.flags);
        let result = if done.is_ok() { SUCCESS } else { ERROR };
        parameters.set(InstantiateParameters {
            error_node: 0,
            result,
            ..given
        })?;
        done
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphExecGetFlags(executable: Handle, flags: Out<u64>) -> CUresult {
    call("cuGraphExecGetFlags", || {
        flags.set(driver()?.executables.get(executable)?.flags)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphExecDestroy(executable: Handle) -> CUresult {
    call("cuGraphExecDestroy", || {
        driver()?.executables.remove(executable).map(drop)
    })
}

/// Does the work of the graph, node by node, and stops at the first that fails.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphLaunch(executable: Handle, stream: Handle) -> CUresult {
    call("cuGraphLaunch", || {
        let (driver, context) = current()?;
        let work = Arc::clone(&driver.executables.get(executable)?.work);
        submit(&driver, &context, stream, Work::Graph(work))
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphUpload(executable: Handle, stream: Handle) -> CUresult {
    call("cuGraphUpload", || {
        current_stream(stream)?
            .0
            .executables
            .get(executable)
            .map(drop)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphDestroy(graph: Handle) -> CUresult {
    call("cuGraphDestroy", || {
        driver()?.graphs.remove(graph).map(drop)
    })
}

/// The copy has nodes of its own only by name: a graph does not change, so they are shared.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphClone(out: Out<Handle>, graph: Handle) -> CUresult {
    call("cuGraphClone", || {
        let driver = driver()?;
        out.check()?;
        let nodes = Arc::clone(&driver.graphs.get(graph)?.nodes);
        out.set(driver.graphs.insert(|_| Graph { nodes }).0)
    })
}

/// Answers a list as C asks for it: its length where the array is null, else as much as fits, with
/// null in the rest.
fn give_list(list: &[Handle], array: &Out<Handle>, count: &Out<usize>) -> Result<()> {
    if array.is_null() {
        return count.set(list.len());
    }
    let room = count.get()?;
    let given = &list[..list.len().min(room)];
    // SAFETY: C passes an array of as many elements as the count says.
    unsafe { array.set_all(given) };
    for at in given.len()..room {
        // SAFETY: as above.
        unsafe { array.element(at) }.set(0)?;
    }
    count.set(given.len())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphGetNodes(
    graph: Handle,
    nodes: Out<Handle>,
    count: Out<usize>,
) -> CUresult {
    call("cuGraphGetNodes", || {
        let graph = driver()?.graphs.get(graph)?;
        let list: Vec<Handle> = graph.nodes.iter().map(|node| node.handle).collect();
        give_list(&list, &nodes, &count)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphGetRootNodes(
    graph: Handle,
    nodes: Out<Handle>,
    count: Out<usize>,
) -> CUresult {
    call("cuGraphGetRootNodes", || {
        let graph = driver()?.graphs.get(graph)?;
        let roots = graph
            .nodes
            .iter()
            .filter(|node| node.dependencies.is_empty());
        give_list(
            &roots.map(|node| node.handle).collect::<Vec<_>>(),
            &nodes,
            &count,
        )
    })
}

fn give_edges(
    graph: Handle,
    from: &Out<Handle>,
    to: &Out<Handle>,
    count: &Out<usize>,
) -> Result<()> {
    let edges = driver()?.graphs.get(graph)?.edges();
    if from.is_null() != to.is_null() {
        return Err(Error::value("only one end of the edges was asked for"));
    }
    let (starts, ends): (Vec<Handle>, Vec<Handle>) = edges.into_iter().unzip();
    if from.is_null() {
        return count.set(starts.len());
    }
    let room = count.get()?;
    give_list(&starts, from, count)?;
    count.set(room)?;
    give_list(&ends, to, count)
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphGetEdges(
    graph: Handle,
    from: Out<Handle>,
    to: Out<Handle>,
    count: Out<usize>,
) -> CUresult {
    call("cuGraphGetEdges", || give_edges(graph, &from, &to, &count))
}

/// Edges of a capture carry no data.
#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphGetEdges_v2(
    graph: Handle,
    from: Out<Handle>,
    to: Out<Handle>,
    data: Out<u64>,
    count: Out<usize>,
) -> CUresult {
    call("cuGraphGetEdges", || {
        give_edges(graph, &from, &to, &count)?;
        if !data.is_null() && !from.is_null() {
            // SAFETY: C passes as many 8-byte structures as the count says, and it only went down.
            unsafe { data.set_all(&vec![0; count.get()?]) };
        }
        Ok(())
    })
}

/// A node by handle.
fn node(handle: Handle) -> Result<Node> {
    let found = driver()?.graphs.find_map(|graph| {
        let mut nodes = graph.nodes.iter();
        nodes.find(|node| node.handle == handle).cloned()
    });
    found.ok_or_else(|| {
        let text = format!("{handle:#x} is no node of a graph that is alive");
        Error::new(code::INVALID_HANDLE, text)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphNodeGetType(handle: Handle, kind: Out<u32>) -> CUresult {
    call("cuGraphNodeGetType", || {
        kind.set(node(handle)?.work.node_type())
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuGraphNodeGetDependencies(
    handle: Handle,
    dependencies: Out<Handle>,
    count: Out<usize>,
) -> CUresult {
    call("cuGraphNodeGetDependencies", || {
        give_list(&node(handle)?.dependencies, &dependencies, &count)
    })
}
