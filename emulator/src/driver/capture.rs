//! Stream capture: work that streams take is recorded as the nodes of a graph.
//!
//! The rules are those of hardware, which a program that only ever ran here could otherwise break:
//! a call that a capture cannot hold fails and spoils the capture; other streams join through events
//! and must be joined back.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::thread::{self, ThreadId};

use super::error::{Error, Result, code};
use super::event::State;
use super::ffi::{CUresult, Handle, Out, call, lock};
use super::graph::{Graph, Node};
use super::handle::fresh;
use super::stream::{Stream, current_stream};
use super::work::Work;

/// `CUstreamCaptureMode`: which threads' unsafe calls spoil a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Those of all threads.
    Global,
    /// Those of the thread that began it.
    ThreadLocal,
    /// None.
    Relaxed,
}

impl Mode {
    fn from_number(number: u32) -> Result<Mode> {
        Ok(match number {
            0 => Mode::Global,
            1 => Mode::ThreadLocal,
            2 => Mode::Relaxed,
            _ => return Err(Error::value(format!("{number} is no CUstreamCaptureMode"))),
        })
    }
}

// `CUstreamCaptureStatus`.
const NONE: u32 = 0;
const ACTIVE: u32 = 1;
const INVALIDATED: u32 = 2;

thread_local! {
    /// How captures restrict this thread.
    static THREAD_MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// All captures that have begun and not ended.
#[derive(Default)]
pub(super) struct Captures {
    recordings: BTreeMap<u64, Recording>,
    /// The capture that a stream is in.
    of_stream: HashMap<Handle, u64>,
    begun: u64,
}

/// One capture.
struct Recording {
    mode: Mode,
    thread: ThreadId,
    context: Handle,
    /// The stream that it was begun on, and must end on.
    origin: Handle,
    /// Whether stream 0 would wait for one of its streams.
    blocking: bool,
    /// Why it can no longer become a graph.
    spoiled: Option<String>,
    nodes: Vec<Node>,
    /// The last nodes of each stream: what its next node depends on.
    tips: HashMap<Handle, BTreeSet<Handle>>,
}

impl Recording {
    /// Spoils the capture, and makes the error that says so.
    fn spoil(&mut self, code: CUresult, text: String) -> Error {
        self.spoiled.get_or_insert_with(|| text.clone());
        Error::new(code, text)
    }

    /// Whether unsafe calls of this thread are forbidden.
    fn restricts_this_thread(&self) -> bool {
        let own = self.thread == thread::current().id();
        match (THREAD_MODE.get(), self.mode) {
            (Mode::Relaxed, _) | (_, Mode::Relaxed) => false,
            (_, _) if own => true,
            (Mode::Global, Mode::Global) => true,
            _ => false,
        }
    }

    /// Whether all work of other streams comes before something that the origin has.
    fn is_joined(&self) -> bool {
        let dependencies: HashMap<Handle, &[Handle]> = (self.nodes.iter())
            .map(|node| (node.handle, &*node.dependencies))
            .collect();
        let mut reached = BTreeSet::new();
        let mut next: Vec<Handle> = (self.tips.get(&self.origin).into_iter().flatten())
            .copied()
            .collect();
        while let Some(node) = next.pop() {
            if reached.insert(node) {
                next.extend(dependencies.get(&node).into_iter().copied().flatten());
            }
        }
        self.tips
            .values()
            .flatten()
            .all(|tip| reached.contains(tip))
    }
}

impl Captures {
    fn recording(&mut self, stream: &Stream) -> Option<(u64, &mut Recording)> {
        let id = *self.of_stream.get(&stream.handle)?;
        self.recordings
            .get_mut(&id)
            .map(|recording| (id, recording))
    }

    /// The recording of a stream, if it can still take nodes.
    fn sound(&mut self, stream: &Stream) -> Result<Option<(u64, &mut Recording)>> {
        match self.recording(stream) {
            Some((
                _,
                Recording {
                    spoiled: Some(why), ..
                },
            )) => {
                let text = format!("the capture was spoiled before: {why}");
                Err(Error::new(code::STREAM_CAPTURE_INVALIDATED, text))
            }
            other => Ok(other),
        }
    }

    /// Whether a stream captures.
    pub(super) fn is_capturing(&self, stream: &Stream) -> bool {
        self.of_stream.contains_key(&stream.handle)
    }

    fn begin(&mut self, stream: &Stream, mode: Mode) -> Result<()> {
        if stream.is_legacy {
            let text = "stream 0 cannot capture: create a stream";
            return Err(Error::new(code::STREAM_CAPTURE_UNSUPPORTED, text));
        }
        if self.is_capturing(stream) {
            return Err(Error::new(
                code::ILLEGAL_STATE,
                "the stream captures already",
            ));
        }
        self.begun += 1;
        let recording = Recording {
            mode,
            thread: thread::current().id(),
            context: stream.context,
            origin: stream.handle,
            blocking: stream.is_blocking(),
            spoiled: None,
            nodes: Vec::new(),
            tips: HashMap::from([(stream.handle, BTreeSet::new())]),
        };
        self.recordings.insert(self.begun, recording);
        self.of_stream.insert(stream.handle, self.begun);
        Ok(())
    }

    /// Ends the capture of a stream and gives its nodes, in an order that they can run in.
    fn end(&mut self, stream: &Stream) -> Result<Vec<Node>> {
        let Some((id, recording)) = self.recording(stream) else {
            return Err(Error::new(
                code::ILLEGAL_STATE,
                "the stream does not capture",
            ));
        };
        if recording.origin != stream.handle {
            let text = "the capture was begun on another stream, where it must end";
            return Err(recording.spoil(code::STREAM_CAPTURE_UNMATCHED, text.to_owned()));
        }
        if recording.mode != Mode::Relaxed && recording.thread != thread::current().id() {
            let text = "the capture was begun by another thread, which must end it";
            return Err(Error::new(code::STREAM_CAPTURE_WRONG_THREAD, text));
        }
        let joined = recording.is_joined();
        let recording = self.remove(id);
        match recording {
            Some(Recording {
                spoiled: Some(why), ..
            }) => {
                let text = format!("the capture was spoiled: {why}");
                Err(Error::new(code::STREAM_CAPTURE_INVALIDATED, text))
            }
            Some(recording) if joined => Ok(recording.nodes),
            _ => {
                let text = "a stream that took part was not joined: record an event on it and let \
                            the first stream wait for that";
                Err(Error::new(code::STREAM_CAPTURE_UNJOINED, text))
            }
        }
    }

    fn remove(&mut self, id: u64) -> Option<Recording> {
        self.of_stream.retain(|_, recording| *recording != id);
        self.recordings.remove(&id)
    }

    /// Records work of a stream that captures.
    pub(super) fn record(&mut self, stream: &Stream, work: Work) -> Result<()> {
        let Some((_, recording)) = self.sound(stream)? else {
            return Err(Error::new(
                code::ILLEGAL_STATE,
                "the stream does not capture",
            ));
        };
        let node = fresh();
        let tips = recording.tips.entry(stream.handle).or_default();
        let dependencies = std::mem::replace(tips, BTreeSet::from([node]));
        recording.nodes.push(Node {
            handle: node,
            work,
            dependencies: dependencies.into_iter().collect(),
        });
        Ok(())
    }

    /// The capture of a stream and the last nodes there; for an event.
    pub(super) fn position(&mut self, stream: &Stream) -> Result<Option<(u64, Vec<Handle>)>> {
        let recording = self.sound(stream)?;
        Ok(recording.map(|(id, recording)| {
            let tips = recording.tips.get(&stream.handle);
            (id, tips.into_iter().flatten().copied().collect())
        }))
    }

    /// Lets a stream wait for an event: it may join the event's capture.
    pub(super) fn wait(&mut self, stream: &Stream, event: &State) -> Result<()> {
        let own = self.sound(stream)?.map(|(id, _)| id);
        let (capture, nodes) = match event {
            State::New => return Ok(()),
            State::Done => {
                let Some((_, recording)) = self.recording(stream) else {
                    return self.check_implicit(stream);
                };
                let text =
                    "a stream that captures may not wait for an event from outside the capture";
                return Err(recording.spoil(code::STREAM_CAPTURE_ISOLATION, text.to_owned()));
            }
            State::Captured { capture, nodes } => (*capture, nodes),
        };
        if let Some(own) = own.filter(|own| *own != capture) {
            let text = "the event belongs to another capture";
            let both = [own, capture].into_iter();
            for id in both {
                if let Some(recording) = self.recordings.get_mut(&id) {
                    recording.spoil(code::STREAM_CAPTURE_MERGE, text.to_owned());
                }
            }
            return Err(Error::new(code::STREAM_CAPTURE_MERGE, text));
        }
        let Some(recording) = self.recordings.get_mut(&capture) else {
            let text = "the event was last recorded in a capture that has ended";
            return Err(Error::new(code::CAPTURED_EVENT, text));
        };
        if stream.is_legacy {
            let text = "stream 0 cannot join a capture";
            return Err(recording.spoil(code::STREAM_CAPTURE_IMPLICIT, text.to_owned()));
        }
        if let Some(why) = &recording.spoiled {
            let text = format!("the capture was spoiled before: {why}");
            return Err(Error::new(code::STREAM_CAPTURE_INVALIDATED, text));
        }
        recording.blocking |= stream.is_blocking();
        recording
            .tips
            .entry(stream.handle)
            .or_default()
            .extend(nodes);
        self.of_stream.insert(stream.handle, capture);
        Ok(())
    }

    /// Refuses a call that may have to wait for the device, if a capture restricts this thread.
    pub(super) fn forbid(&mut self, name: &str) -> Result<()> {
        let mut restricting = self
            .recordings
            .values_mut()
            .filter(|s| s.restricts_this_thread());
        let Some(recording) = restricting.next() else {
            return Ok(());
        };
        let scope = match recording.mode {
            Mode::Global => "a stream captures in global mode",
            _ => "this thread captures a stream",
        };
        let text = format!("{name} is not permitted while {scope}");
        Err(recording.spoil(code::STREAM_CAPTURE_UNSUPPORTED, text))
    }

    /// Refuses a call that a stream cannot serve while it captures.
    pub(super) fn forbid_on(&mut self, name: &str, stream: &Stream) -> Result<()> {
        let Some((_, recording)) = self.recording(stream) else {
            return Ok(());
        };
        let text = format!("{name} is not permitted on a stream that captures");
        Err(recording.spoil(code::STREAM_CAPTURE_UNSUPPORTED, text))
    }

    /// Refuses a call that waits for a whole context.
    pub(super) fn forbid_in_context(&mut self, name: &str, context: Handle) -> Result<()> {
        let mut own = self
            .recordings
            .values_mut()
            .filter(|s| s.context == context);
        let Some(recording) = own.next() else {
            return Ok(());
        };
        let text = format!("{name} is not permitted while a stream of the context captures");
        Err(recording.spoil(code::STREAM_CAPTURE_UNSUPPORTED, text))
    }

    /// Refuses work on stream 0 that would have to wait for a stream that captures.
    pub(super) fn check_implicit(&mut self, stream: &Stream) -> Result<()> {
        if !stream.is_legacy {
            return Ok(());
        }
        let mut waited_for = (self.recordings.values_mut())
            .filter(|recording| recording.blocking && recording.context == stream.context);
        let Some(recording) = waited_for.next() else {
            return Ok(());
        };
        let text = "work on stream 0 would wait for a stream that captures: give it to another \
                    stream, or capture on a non-blocking one";
        Err(recording.spoil(code::STREAM_CAPTURE_IMPLICIT, text.to_owned()))
    }

    /// Spoils the capture that a destroyed stream is in.
    pub(super) fn end_of_stream(&mut self, stream: &Stream) {
        let Some(id) = self.of_stream.remove(&stream.handle) else {
            return;
        };
        let is_origin = (self.recordings.get_mut(&id)).is_some_and(|recording| {
            let text = "a stream was destroyed while it captured".to_owned();
            recording.spoil(code::STREAM_CAPTURE_INVALIDATED, text);
            recording.origin == stream.handle
        });
        if is_origin {
            self.remove(id); // nobody can end it any more
        }
    }

    /// Drops the captures of a context that ends.
    pub(super) fn end_of_context(&mut self, context: Handle) {
        let own: Vec<u64> = (self.recordings.iter())
            .filter(|(_, recording)| recording.context == context)
            .map(|(id, _)| *id)
            .collect();
        for id in own {
            self.remove(id);
        }
    }

    /// `CUstreamCaptureStatus` and the capture's number, 0 if there is none.
    fn status(&mut self, stream: &Stream) -> Result<(u32, u64)> {
        self.check_implicit(stream)?;
        Ok(match self.recording(stream) {
            None => (NONE, 0),
            Some((id, recording)) if recording.spoiled.is_none() => (ACTIVE, id),
            Some((id, _)) => (INVALIDATED, id),
        })
    }
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) -> CUresult {
    call("cuStreamBeginCapture", || {
        let (driver, stream) = current_stream(stream)?;
        lock(&driver.captures).begin(&stream, Mode::from_number(mode)?)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamEndCapture(stream: Handle, graph: Out<Handle>) -> CUresult {
    call("cuStreamEndCapture", || {
        let (driver, stream) = current_stream(stream)?;
        graph.set(0)?;
        let nodes = lock(&driver.captures).end(&stream)?;
        let (handle, _) = driver.graphs.insert(|_| Graph::new(nodes));
        graph.set(handle)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamIsCapturing(stream: Handle, status: Out<u32>) -> CUresult {
    call("cuStreamIsCapturing", || {
        let (driver, stream) = current_stream(stream)?;
        status.set(lock(&driver.captures).status(&stream)?.0)
    })
}

fn info(stream: Handle, status: &Out<u32>, id: &Out<u64>) -> Result<()> {
    let (driver, stream) = current_stream(stream)?;
    let (state, number) = lock(&driver.captures).status(&stream)?;
    id.set_if_wanted(number);
    status.set(state)
}

/// A graph is made when its capture ends; it and its nodes cannot be asked for before.
fn refuse_graph(parts: &[bool]) -> Result<()> {
    if parts.contains(&true) {
        let text = "the graph of a capture that goes on is not emulated: end the capture first";
        return Err(Error::unsupported(text));
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamGetCaptureInfo(
    stream: Handle,
    status: Out<u32>,
    id: Out<u64>,
) -> CUresult {
    call("cuStreamGetCaptureInfo", || info(stream, &status, &id))
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamGetCaptureInfo_v2(
    stream: Handle,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Out<Handle>,
    count: Out<usize>,
) -> CUresult {
    call("cuStreamGetCaptureInfo", || {
        refuse_graph(&[!graph.is_null(), !dependencies.is_null(), !count.is_null()])?;
        info(stream, &status, &id)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuStreamGetCaptureInfo_v3(
    stream: Handle,
    status: Out<u32>,
    id: Out<u64>,
    graph: Out<Handle>,
    dependencies: Out<Handle>,
    edges: Out<Handle>,
    count: Out<usize>,
) -> CUresult {
    call("cuStreamGetCaptureInfo", || {
        let wanted = [
            !graph.is_null(),
            !dependencies.is_null(),
            !edges.is_null(),
            !count.is_null(),
        ];
        refuse_graph(&wanted)?;
        info(stream, &status, &id)
    })
}

#[unsafe(no_mangle)]
pub(super) extern "C" fn cuThreadExchangeStreamCaptureMode(mode: Out<u32>) -> CUresult {
    call("cuThreadExchangeStreamCaptureMode", || {
        let before = THREAD_MODE.replace(Mode::from_number(mode.get()?)?);
        mode.set(before as u32)
    })
}
