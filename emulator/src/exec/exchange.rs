//! Exchanges within a warp: shuffles, votes, matches, reductions.

use super::context::{Done, Trouble, lanes};
use super::registers::{LANES, Registers};
use crate::fault::FaultKind;
use crate::ir::{AtomicOp, Pred, Scalar, Shuffle, Slot, Vote};

/// `shfl.sync`
#[inline(always)]
pub(super) fn shuffle(
    r: &mut Registers,
    active: u32,
    mode: Shuffle,
    (d, p): (Slot, Pred),
    (a, b, clamp): (Slot, Slot, Slot),
) -> Done {
    let (values, b, c) = (r.get::<u32>(a), r.get::<u32>(b), r.get::<u32>(clamp));
    let mut out = [0; LANES];
    let mut in_range = 0u32;
    for lane in lanes(active) {
        let (me, offset) = (lane as u32, b[lane] & 31);
        let (limit, segment) = (c[lane] & 31, c[lane] >> 8 & 31);
        let low = me & segment;
        let high = low | limit & !segment;
        let (source, valid) = match mode {
            Shuffle::Up => {
                let source = me as i32 - offset as i32;
                (source as u32, source >= high as i32)
            }
            Shuffle::Down => (me + offset, me + offset <= high),
            Shuffle::Butterfly => (me ^ offset, me ^ offset <= high),
            Shuffle::Index => {
                let source = low | offset & !segment;
                (source, source <= high)
            }
        };
        let source = if valid { source } else { me };
        if active >> source & 1 == 0 {
            let message = format!("shuffles from lane {source}, which does not take part");
            return Err(Trouble::new(FaultKind::Divergence, me, message));
        }
        in_range |= u32::from(valid) << lane;
        out[lane] = values[source as usize];
    }
    r.put(active, d, out);
    r.set_predicate(active, p, in_range);
    Ok(())
}

/// `vote.sync`; lanes may vote in several groups at once.
pub(super) fn vote(
    r: &mut Registers,
    active: u32,
    mode: Vote,
    (d, p): (Slot, Pred),
    (a, negated): (Pred, bool),
    members: Slot,
) {
    let holds = r.predicate(a) ^ if negated { u32::MAX } else { 0 };
    let members = r.get::<u32>(members);
    let mut predicate = 0;
    let mut ballot = [0; LANES];
    for lane in lanes(active) {
        let yes = holds & members[lane];
        let result = match mode {
            Vote::All => yes == members[lane],
            Vote::Any => yes != 0,
            Vote::Uniform => yes == 0 || yes == members[lane],
            Vote::Ballot => false,
        };
        predicate |= u32::from(result) << lane;
        ballot[lane] = yes;
    }
    if mode == Vote::Ballot {
        r.put(active, d, ballot);
    } else {
        r.set_predicate(active, p, predicate);
    }
}

/// `match.sync`
pub(super) fn matching(
    r: &mut Registers,
    active: u32,
    (all, wide): (bool, bool),
    (d, p): (Slot, Pred),
    a: Slot,
    members: Slot,
) {
    let values: [u64; LANES] = if wide {
        r.get(a)
    } else {
        r.get::<u32>(a).map(u64::from)
    };
    let members = r.get::<u32>(members);
    let mut out = [0; LANES];
    let mut predicate = 0;
    for lane in lanes(active) {
        let same = lanes(members[lane])
            .filter(|&other| values[other] == values[lane])
            .fold(0, |mask, other| mask | 1 << other);
        let agree = same == members[lane];
        out[lane] = if !all || agree { same } else { 0 };
        predicate |= u32::from(agree) << lane;
    }
    r.put(active, d, out);
    r.set_predicate(active, p, predicate);
}

/// `redux.sync`
pub(super) fn reduce(
    r: &mut Registers,
    active: u32,
    op: AtomicOp,
    kind: Scalar,
    d: Slot,
    a: Slot,
    members: Slot,
) {
    let values = r.get::<u32>(a);
    let members = r.get::<u32>(members);
    let mut out = [0; LANES];
    for lane in lanes(active) {
        let group = lanes(members[lane]).map(|other| values[other]);
        out[lane] = group
            .reduce(|x, y| match (op, kind) {
                (AtomicOp::Add, _) => x.wrapping_add(y),
                (AtomicOp::Min, Scalar::S32) => (x as i32).min(y as i32) as u32,
                (AtomicOp::Min, _) => x.min(y),
                (AtomicOp::Max, Scalar::S32) => (x as i32).max(y as i32) as u32,
                (AtomicOp::Max, _) => x.max(y),
                (AtomicOp::And, _) => x & y,
                (AtomicOp::Or, _) => x | y,
                _ => x ^ y,
            })
            .unwrap_or(0);
    }
    r.put(active, d, out);
}
