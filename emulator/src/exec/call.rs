//! Calls and returns: each lane has a stack of frames in its local memory, and remembers what to go back to.

use super::context::{Context, Done, Trouble, lanes, resolve};
use super::memory::read_local;
use super::printf;
use super::registers::LANES;
use super::warp::Warp;
use crate::fault::FaultKind;
use crate::ir::{Call, CallTarget, Callee, Code, Pc, Pred, Slot, Space};

/// The most bytes of a text that a kernel prints or names.
const LONGEST_TEXT: usize = 1 << 16;

/// The calls that the lanes of a warp are in.
pub(super) struct Calls {
    lanes: Vec<Lane>,
    /// Bytes of the entry's own local memory.
    entry: u32,
}

/// The calls of one lane.
#[derive(Clone, Default)]
struct Lane {
    /// Where the frame of its function begins, and where the next would.
    base: u32,
    top: u32,
    /// The function it is in; `None` in the entry.
    function: Option<usize>,
    frames: Vec<Frame>,
}

/// What a call leaves behind for its return.
#[derive(Clone)]
struct Frame {
    call: Pc,
    base: u32,
    top: u32,
    function: Option<usize>,
    /// The registers of a function that is called while it runs.
    rows: Vec<u32>,
    predicates: Vec<bool>,
}

impl Calls {
    pub(super) fn new(entry: u32) -> Self {
        Calls {
            lanes: Vec::new(),
            entry,
        }
    }

    pub(super) fn reset(&mut self) {
        self.lanes.clear();
    }

    /// The lanes; most kernels call nothing and have none.
    fn lanes(&mut self) -> &mut [Lane] {
        if self.lanes.is_empty() {
            let lane = Lane {
                top: self.entry,
                ..Lane::default()
            };
            self.lanes = vec![lane; LANES];
        }
        &mut self.lanes
    }
}

/// Runs `call`. True if lanes went elsewhere: all groups are then on the warp's list.
pub(super) fn run(
    warp: &mut Warp,
    context: &mut Context<'_>,
    call: &Call,
    pc: Pc,
    mask: u32,
    active: u32,
) -> Done<bool> {
    let body = context.body;
    let targets: [Option<usize>; LANES] = match call.target {
        CallTarget::Function(index) => [Some(index); LANES],
        CallTarget::Indirect(slot) => {
            let addresses = warp.registers.get::<u64>(slot);
            let find = |address| {
                let mut functions = body.functions.iter();
                functions.position(|function| function.address == address)
            };
            addresses.map(find)
        }
        CallTarget::Print => {
            for lane in lanes(active) {
                print(warp, context, call, lane)?;
            }
            return Ok(false);
        }
        CallTarget::AssertFail => return Err(assertion(warp, context, call, active)),
    };
    let mut rest = active;
    while rest != 0 {
        let lane = rest.trailing_zeros() as usize;
        let Some(index) = targets[lane] else {
            let message = "calls through an address that is no function's";
            return Err(Trouble::new(FaultKind::Trap, lane as u32, message));
        };
        let same = lanes(rest)
            .filter(|&other| targets[other] == Some(index))
            .fold(0, |mask, other| mask | 1 << other);
        let callee = &body.functions[index];
        for lane in lanes(same) {
            enter(warp, call, pc, lane, (index, callee))?;
        }
        warp.push(callee.entry, same, false);
        rest &= !same;
    }
    warp.push(pc + 1, mask & !active, false);
    Ok(true)
}

/// Moves bytes of one lane's local memory, with whether they were written.
fn copy(warp: &mut Warp, lane: usize, from: u32, to: u32, bytes: u32) {
    let start = lane * warp.local_bytes as usize;
    let (from, to) = (start + from as usize, start + to as usize);
    let range = from..from + bytes as usize;
    warp.local.copy_within(range.clone(), to);
    warp.local_written.copy_within(range, to);
}

/// Lets the registers that hold addresses in a frame point into the one at `base`.
fn point(warp: &mut Warp, lane: usize, base: u32, addresses: &[(Slot, u32)]) {
    for &(slot, offset) in addresses {
        warp.registers.row_mut(slot)[lane] = base + offset;
        warp.registers.row_mut(slot + 1)[lane] = 0;
    }
}

fn enter(
    warp: &mut Warp,
    call: &Call,
    pc: Pc,
    lane: usize,
    (index, callee): (usize, &Callee),
) -> Done {
    let here = &mut warp.calls.lanes()[lane];
    let (caller, base) = (here.base, here.top);
    let depth = here.frames.len();
    let sizes = |pieces: &[(u32, u32)]| pieces.iter().map(|piece| piece.1).collect::<Vec<_>>();
    let fits = matches!(call.target, CallTarget::Function(_))
        || sizes(&call.arguments) == sizes(&callee.parameters)
            && sizes(&call.results) == sizes(&callee.results);
    if !fits {
        let name = &callee.name;
        let message = format!("calls `{name}`, which takes or returns parameters of other sizes");
        return Err(Trouble::new(FaultKind::Trap, lane as u32, message));
    }
    if base + callee.frame > warp.local_bytes {
        let (name, bytes) = (&callee.name, warp.local_bytes - warp.calls.entry);
        let message = format!(
            "calls `{name}` {depth} calls deep: their frames take more than the {bytes} bytes of a thread's stack (CU_LIMIT_STACK_SIZE raises it)"
        );
        return Err(Trouble::new(FaultKind::StackOverflow, lane as u32, message));
    }
    let mut rows = Vec::new();
    let mut predicates = Vec::new();
    for row in callee.rows.clone() {
        let word = &mut warp.registers.row_mut(row as Slot)[lane];
        if callee.recursive {
            rows.push(*word);
        }
        // as at the start of a block: NaN as a float
        *word = u32::MAX;
    }
    for index in callee.predicates.clone() {
        let bit = warp.registers.predicate(index as Pred) >> lane & 1 != 0;
        if callee.recursive {
            predicates.push(bit);
        }
        warp.registers.set_predicate(1 << lane, index as Pred, 0);
    }
    let start = lane * warp.local_bytes as usize + base as usize;
    warp.local_written[start..start + callee.frame as usize].fill(false);
    for (&(from, bytes), &(to, _)) in call.arguments.iter().zip(&callee.parameters) {
        copy(warp, lane, caller + from, base + to, bytes);
    }
    point(warp, lane, base, &callee.addresses);
    let here = &mut warp.calls.lanes()[lane];
    here.frames.push(Frame {
        call: pc,
        base: here.base,
        top: here.top,
        function: here.function,
        rows,
        predicates,
    });
    here.base = base;
    here.top = base + callee.frame;
    here.function = Some(index);
    Ok(())
}

/// Runs `ret` in a function: lanes go on behind the calls that they came by.
pub(super) fn back(warp: &mut Warp, context: &Context<'_>, active: u32) {
    let body = context.body;
    let mut groups: Vec<(Pc, u32)> = Vec::new();
    for lane in lanes(active) {
        let here = &mut warp.calls.lanes()[lane];
        // a function is only ever entered by a call
        let (Some(frame), Some(index)) = (here.frames.pop(), here.function) else {
            continue;
        };
        let from = here.base;
        (here.base, here.top, here.function) = (frame.base, frame.top, frame.function);
        let callee = &body.functions[index];
        if let Code::Call(call) = &body.ops[frame.call as usize].code {
            for (&(to, bytes), &(at, _)) in call.results.iter().zip(&callee.results) {
                copy(warp, lane, from + at, frame.base + to, bytes);
            }
        }
        for (row, word) in callee.rows.clone().zip(frame.rows) {
            warp.registers.row_mut(row as Slot)[lane] = word;
        }
        for (index, bit) in callee.predicates.clone().zip(frame.predicates) {
            let value = if bit { u32::MAX } else { 0 };
            warp.registers
                .set_predicate(1 << lane, index as Pred, value);
        }
        if let Some(caller) = frame.function {
            point(warp, lane, frame.base, &body.functions[caller].addresses);
        }
        let next = frame.call + 1;
        match groups.iter_mut().find(|(pc, _)| *pc == next) {
            Some((_, mask)) => *mask |= 1 << lane,
            None => groups.push((next, 1 << lane)),
        }
    }
    for (pc, mask) in groups {
        warp.push(pc, mask, false);
    }
}

/// An argument of a builtin function.
fn argument(warp: &mut Warp, call: &Call, lane: usize, index: usize) -> Done<u64> {
    let base = warp.calls.lanes()[lane].base;
    let (offset, bytes) = call.arguments[index];
    let mut word = [0; 8];
    let count = (bytes as usize).min(8);
    read_local(warp, lane, u64::from(base + offset), &mut word[..count])?;
    Ok(u64::from_le_bytes(word))
}

/// Reads bytes at a generic address.
fn read(warp: &Warp, context: &mut Context<'_>, lane: usize, address: u64, out: &mut [u8]) -> Done {
    match resolve(address) {
        (Space::Local, at) => read_local(warp, lane, at, out),
        (_, at) => context.load_global(lane as u32, at, out),
    }
}

/// A text that ends with a zero.
fn text(warp: &Warp, context: &mut Context<'_>, lane: usize, address: u64) -> Done<Vec<u8>> {
    let mut out = Vec::new();
    while out.len() < LONGEST_TEXT {
        let mut byte = [0];
        read(warp, context, lane, address + out.len() as u64, &mut byte)?;
        if byte[0] == 0 {
            break;
        }
        out.push(byte[0]);
    }
    Ok(out)
}

/// `vprintf(format, arguments)`: the arguments lie behind each other, each at a multiple of its size.
fn print(warp: &mut Warp, context: &mut Context<'_>, call: &Call, lane: usize) -> Done {
    let format = argument(warp, call, lane, 0)?;
    let buffer = argument(warp, call, lane, 1)?;
    let format = text(warp, context, lane, format)?;
    let mut at = buffer;
    let mut count = 0u32;
    let mut printed = Vec::new();
    for piece in printf::pieces(&format) {
        let piece = match piece {
            printf::Piece::Text(bytes) => {
                printed.extend_from_slice(bytes);
                continue;
            }
            printf::Piece::Value(value) => value,
        };
        let mut next = |bytes: u64| -> Done<u64> {
            at = at.next_multiple_of(bytes);
            let mut word = [0; 8];
            read(warp, context, lane, at, &mut word[..bytes as usize])?;
            at += bytes;
            count += 1;
            Ok(u64::from_le_bytes(word))
        };
        let stars = [piece.stars.0, piece.stars.1].map(|star| {
            if star {
                next(4).map(|word| Some(word as i32))
            } else {
                Ok(None)
            }
        });
        let [width, precision] = stars;
        let (width, precision) = (width?, precision?);
        let word = next(piece.bytes())?;
        let value = match piece.conversion {
            b's' => text(warp, context, lane, word)?,
            _ => Vec::new(),
        };
        printed.extend(piece.format(word, &value, width, precision));
    }
    context
        .report
        .printed
        .push_str(&String::from_utf8_lossy(&printed));
    // what came out, as a result
    if let Some(&(offset, 4)) = call.results.first() {
        let base = warp.calls.lanes()[lane].base;
        let start = lane * warp.local_bytes as usize + (base + offset) as usize;
        warp.local[start..start + 4].copy_from_slice(&count.to_le_bytes());
        warp.local_written[start..start + 4].fill(true);
    }
    Ok(())
}

/// `__assertfail(condition, file, line, function, bytes of a character)`
fn assertion(warp: &mut Warp, context: &mut Context<'_>, call: &Call, active: u32) -> Box<Trouble> {
    let lane = active.trailing_zeros() as usize;
    let words = |warp: &mut Warp, context: &mut Context<'_>| -> Done<String> {
        let mut texts = Vec::new();
        for index in [0, 1, 3] {
            let address = argument(warp, call, lane, index)?;
            let bytes = text(warp, context, lane, address)?;
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
        let line = argument(warp, call, lane, 2)?;
        let [condition, file, function] = &texts[..] else {
            return Ok(String::new());
        };
        Ok(format!(
            "`{condition}` does not hold: {file}:{line}, in {function}"
        ))
    };
    match words(warp, context) {
        Ok(message) => Trouble::new(FaultKind::Assert, lane as u32, message),
        Err(trouble) => trouble,
    }
}
