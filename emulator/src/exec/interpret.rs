//! The loop that runs a warp: fetch, guard, execute.

use super::context::{Context, Done, Trouble, lanes};
use super::global::exhausted;
use super::registers::{FULL, LANES, Registers};
use super::schedule::Schedule;
use super::warp::{Group, Stop, Warp};
use super::{
    atomic, call, convert, copy, exchange, float, hopper, integer, lanes as lane, matrix, memory,
    product, wgmma,
};
use crate::class::MatrixKind;
use crate::fault::FaultKind;
use crate::ir::{Code, Logic, Mma, Pc};

/// Warp instructions that lanes apart from the rest of their warp run in one go, in an adversarial schedule.
const DIVERGED_SLICE: u64 = 1 << 10;

/// The host has AVX2 and what comes with it.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_avx2() -> bool {
    use std::arch::is_x86_feature_detected as detected;
    detected!("avx2") && detected!("fma") && detected!("f16c")
}

/// Runs a warp until it waits, ends, or has executed `slice` instructions.
pub(super) fn run(
    warp: &mut Warp,
    context: &mut Context<'_>,
    schedule: Schedule,
    slice: u64,
) -> Done<Stop> {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        // SAFETY: the features were just detected.
        return unsafe { run_avx2(warp, context, schedule, slice) };
    }
    run_on::<false>(warp, context, schedule, slice)
}

/// The same loop compiled for AVX2 and FMA: lanes run eight at a time, and fma is one instruction.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2(
    warp: &mut Warp,
    context: &mut Context<'_>,
    schedule: Schedule,
    slice: u64,
) -> Done<Stop> {
    run_on::<true>(warp, context, schedule, slice)
}

#[inline(always)]
fn run_on<const AVX2: bool>(
    warp: &mut Warp,
    context: &mut Context<'_>,
    schedule: Schedule,
    slice: u64,
) -> Done<Stop> {
    let last = context.clock + slice;
    while let Some((group, limit)) = warp.pick(context, schedule)? {
        // lanes that spin on others of their warp hand over soon; in the other schedule they would part from those they
        // are about to meet
        let diverged = schedule != Schedule::LowestPc && !warp.groups.is_empty();
        let end = if diverged {
            last.min(context.clock + DIVERGED_SLICE)
        } else {
            last
        };
        if let Some(stop) = run_group::<AVX2>(warp, context, group, limit, end)? {
            return Ok(stop);
        }
    }
    Ok(Stop::Exited)
}

/// `mma.sync` by the host's means; `AVX2` is true only in [`run_avx2`].
#[inline(always)]
fn multiply<const AVX2: bool>(r: &mut Registers, mma: &Mma) {
    #[cfg(target_arch = "x86_64")]
    if AVX2 && !mma.half_accumulator {
        // SAFETY: only `run_avx2` passes true, and it runs where the features were detected.
        return unsafe { super::avx2::multiply(r, mma) };
    }
    matrix::multiply(r, mma);
}

/// Runs lanes that stand together until they part, park, meet others, or stop.
#[inline(always)]
fn run_group<const AVX2: bool>(
    warp: &mut Warp,
    context: &mut Context<'_>,
    group: Group,
    limit: Pc,
    end: u64,
) -> Done<Option<Stop>> {
    let body = context.body;
    let Group {
        mut pc, mut mask, ..
    } = group;
    loop {
        if pc >= limit {
            warp.push(pc, mask, false);
            return Ok(None);
        }
        let op = &body.ops[pc as usize];
        let guard = warp.registers.predicate(op.guard);
        let active = mask & if op.negated { !guard } else { guard };
        warp.at = pc;
        context.issued[pc as usize] += 1;
        context.clock += 1;
        if active == 0 {
            pc += 1;
            continue;
        }
        if !body.product_slots.is_empty() {
            wgmma::touch(warp, context, pc)?;
        }
        let r = &mut warp.registers;
        match &op.code {
            Code::Nop | Code::Fence(None) => {}
            &Code::Fence(Some(scope)) => {
                if !(context.detector).fence(warp.index, scope, active, warp.live) {
                    return Err(exhausted());
                }
            }
            &Code::Move32 { d, a } => r.map1(active, d, a, |x: u32| x),
            &Code::Move64 { d, a } => r.map1(active, d, a, |x: u64| x),
            &Code::MovePred { d, a, negated } => {
                let value = r.predicate(a) ^ if negated { FULL } else { 0 };
                r.set_predicate(active, d, value);
            }
            Code::Pack {
                d,
                parts,
                part_bytes,
            } => memory::pack(r, active, *d, parts, *part_bytes),
            Code::Unpack {
                a,
                parts,
                part_bytes,
            } => memory::unpack(r, active, *a, parts, *part_bytes),
            &Code::Int {
                op,
                width,
                d,
                a,
                b,
                c,
            } => integer::int(r, active, op, width, d, (a, b, c)),
            &Code::Bits {
                op,
                wide,
                d,
                a,
                b,
                c,
                e,
            } => integer::bits(r, active, op, wide, d, [a, b, c, e]),
            &Code::Bytes { op, d, a, b, c } => integer::bytes(r, active, op, d, (a, b, c)),
            &Code::Wide { op, d, a, b, c } => integer::wide(r, active, op, d, (a, b), c),
            &Code::F32 {
                op,
                flush,
                saturate,
                rounding,
                d,
                a,
                b,
                c,
            } => {
                float::single(
                    r,
                    active,
                    float::Single {
                        op,
                        flush,
                        saturate,
                        rounding,
                    },
                    d,
                    (a, b, c),
                );
            }
            &Code::F64 { op, d, a, b, c } => float::double(r, active, op, d, (a, b, c)),
            &Code::Half {
                op,
                kind,
                flush,
                saturate,
                relu,
                d,
                a,
                b,
                c,
            } => {
                float::half(
                    r,
                    active,
                    float::Half {
                        op,
                        kind,
                        flush,
                        saturate,
                        relu,
                    },
                    d,
                    (a, b, c),
                );
            }
            &Code::Compare {
                cmp,
                kind,
                flush,
                d,
                q,
                a,
                b,
                combine,
            } => {
                let holds = float::compare(r, cmp, kind, flush, a, b);
                let (yes, no) = match combine {
                    None => (holds, !holds),
                    Some((logic, p, negated)) => {
                        let other = r.predicate(p) ^ if negated { FULL } else { 0 };
                        (
                            combine_predicates(logic, holds, other),
                            combine_predicates(logic, !holds, other),
                        )
                    }
                };
                r.set_predicate(active, d, yes);
                r.set_predicate(active, q, no);
            }
            &Code::SetValue {
                cmp,
                kind,
                flush,
                float: as_float,
                d,
                a,
                b,
            } => {
                let holds = float::compare(r, cmp, kind, flush, a, b);
                let yes = if as_float { 1f32.to_bits() } else { u32::MAX };
                r.put(
                    active,
                    d,
                    std::array::from_fn::<u32, LANES, _>(|lane| {
                        if holds >> lane & 1 != 0 { yes } else { 0 }
                    }),
                );
            }
            &Code::Select32 { d, a, b, p } => {
                let (a, b, p) = (r.get::<u32>(a), r.get::<u32>(b), r.predicate(p));
                r.put(
                    active,
                    d,
                    std::array::from_fn::<u32, LANES, _>(|lane| {
                        if p >> lane & 1 != 0 { a[lane] } else { b[lane] }
                    }),
                );
            }
            &Code::Select64 { d, a, b, p } => {
                let (a, b, p) = (r.get::<u64>(a), r.get::<u64>(b), r.predicate(p));
                r.put(
                    active,
                    d,
                    std::array::from_fn::<u64, LANES, _>(|lane| {
                        if p >> lane & 1 != 0 { a[lane] } else { b[lane] }
                    }),
                );
            }
            &Code::SelectSign {
                wide,
                float,
                flush,
                d,
                a,
                b,
                c,
            } => {
                let first = |c: u32| {
                    if float {
                        float::flush_if(flush, f32::from_bits(c)) >= 0.0
                    } else {
                        c as i32 >= 0
                    }
                };
                if wide {
                    r.map3(
                        active,
                        d,
                        (a, b, c),
                        |a: u64, b: u64, c: u32| if first(c) { a } else { b },
                    );
                } else {
                    r.map3(
                        active,
                        d,
                        (a, b, c),
                        |a: u32, b: u32, c: u32| if first(c) { a } else { b },
                    );
                }
            }
            &Code::PredLogic { op, d, a, b } => {
                let value = combine_predicates(op, r.predicate(a), r.predicate(b));
                r.set_predicate(active, d, value);
            }
            &Code::PredNot { d, a } => {
                let value = !r.predicate(a);
                r.set_predicate(active, d, value);
            }
            &Code::Convert { convert, d, a } => convert::convert(r, active, convert, d, a),
            &Code::ConvertPair { to, relu, d, a, b } => {
                convert::convert_pair(r, active, to, relu, d, (a, b))
            }
            Code::Lanes(op) => lane::run(r, active, op),
            Code::Carry(op) => lane::carry(r, active, op),
            &Code::Branch { target } => {
                if context.clock >= end {
                    // spinning lanes must not keep the rest of the block from what they wait for
                    warp.push(target, active, false);
                    warp.push(pc + 1, mask & !active, false);
                    warp.end_slice();
                    return Ok(Some(Stop::Slice));
                }
                if active == mask {
                    pc = target;
                    continue;
                }
                context.report.divergent_branches += 1;
                warp.push(target, active, false);
                warp.push(pc + 1, mask & !active, false);
                return Ok(None);
            }
            Code::BranchIndex { index, targets } => {
                branch_index(warp, pc, mask, active, *index, targets)?;
                return Ok(None);
            }
            Code::Exit => {
                warp.live &= !active;
                mask &= !active;
                if mask == 0 {
                    return Ok(None);
                }
            }
            Code::Call(op) => {
                if call::run(warp, context, op, pc, mask, active)? {
                    return Ok(None);
                }
            }
            Code::Return => {
                call::back(warp, context, active);
                warp.push(pc + 1, mask & !active, false);
                return Ok(None);
            }
            Code::Trap => {
                return Err(Trouble::new(
                    FaultKind::Trap,
                    active.trailing_zeros(),
                    "executes trap",
                ));
            }
            Code::Load(access) => memory::load(warp, context, access, active)?,
            Code::Store(access) => memory::store(warp, context, access, active)?,
            Code::Atomic(atomic) => atomic::run(warp, context, atomic, active)?,
            Code::AtomicVector(elements) => atomic::vector(warp, context, elements, active)?,
            Code::CopyAsync(copy) => copy::issue(warp, context, copy, active)?,
            Code::CopyCommit => warp.copies.commit(active),
            Code::CopyWait { pending } => copy::wait(warp, context, *pending, active),
            Code::CopyWaitAll => {
                warp.copies.commit(active);
                copy::wait(warp, context, 0, active);
            }
            Code::AddressSpace {
                space,
                to_space,
                d,
                a,
            } => memory::address_space(warp, *space, *to_space, *d, *a, active)?,
            &Code::IsSpace { space, d, a } => memory::is_space(r, active, space, d, a),
            &Code::Clock { d, wide } => {
                if wide {
                    r.put(active, d, [context.clock; LANES]);
                } else {
                    r.put(active, d, [context.clock as u32; LANES]);
                }
            }
            &Code::ActiveMask { d } => r.put(active, d, [active; LANES]),
            Code::Hopper(op) => {
                if op.is_collective() && !warp.complete(context, pc, mask)? {
                    warp.push(pc + 1, mask & !active, false);
                    warp.push(pc, active, true);
                    return Ok(None);
                }
                match hopper::run(warp, context, op, active)? {
                    None => {}
                    Some(stop) => return Ok(Some(warp.stop_at(stop, pc, mask, active))),
                }
            }
            // what follows needs several lanes at once
            Code::Mma(_)
            | Code::Collective(_)
            | Code::LoadMatrix(_)
            | Code::StoreMatrix(_)
            | Code::Shuffle { .. }
            | Code::Vote { .. }
            | Code::Match { .. }
            | Code::Reduce { .. }
            | Code::WarpSync { .. }
            | Code::Barrier(_) => {
                if !warp.complete(context, pc, mask)? {
                    warp.push(pc + 1, mask & !active, false);
                    warp.push(pc, active, true);
                    return Ok(None);
                }
                match &op.code {
                    Code::Mma(mma) => {
                        multiply::<AVX2>(&mut warp.registers, mma);
                        context.report.mma[MatrixKind::Half as usize] += 16 * 8 * u64::from(mma.k);
                    }
                    Code::Collective(op) => product::run(warp, context, op),
                    Code::LoadMatrix(matrix) => matrix::load(warp, context, matrix)?,
                    Code::StoreMatrix(matrix) => matrix::store(warp, context, matrix)?,
                    &Code::Shuffle {
                        mode,
                        d,
                        p,
                        a,
                        b,
                        clamp,
                        ..
                    } => {
                        exchange::shuffle(
                            &mut warp.registers,
                            active,
                            mode,
                            (d, p),
                            (a, b, clamp),
                        )?;
                    }
                    &Code::Vote {
                        mode,
                        d,
                        p,
                        a,
                        negated,
                        members,
                    } => {
                        exchange::vote(
                            &mut warp.registers,
                            active,
                            mode,
                            (d, p),
                            (a, negated),
                            members,
                        );
                    }
                    &Code::Match {
                        all,
                        wide,
                        d,
                        p,
                        a,
                        members,
                    } => {
                        exchange::matching(
                            &mut warp.registers,
                            active,
                            (all, wide),
                            (d, p),
                            a,
                            members,
                        );
                    }
                    &Code::Reduce {
                        op,
                        kind,
                        d,
                        a,
                        members,
                    } => {
                        exchange::reduce(&mut warp.registers, active, op, kind, d, a, members);
                    }
                    Code::WarpSync { .. } => context.new_period(warp.index)?,
                    Code::Barrier(barrier) => {
                        warp.push(pc + 1, mask, false);
                        return Ok(Some(Stop::Barrier(*barrier)));
                    }
                    _ => {}
                }
            }
        }
        pc += 1;
    }
}

#[inline(always)]
fn combine_predicates(logic: Logic, a: u32, b: u32) -> u32 {
    match logic {
        Logic::And => a & b,
        Logic::Or => a | b,
        Logic::Xor => a ^ b,
    }
}

/// Sends each lane to the label its index picks.
fn branch_index(
    warp: &mut Warp,
    pc: Pc,
    mask: u32,
    active: u32,
    index: u16,
    targets: &[Pc],
) -> Done {
    let indices = warp.registers.get::<u32>(index);
    warp.push(pc + 1, mask & !active, false);
    let mut rest = active;
    while rest != 0 {
        let lane = rest.trailing_zeros() as usize;
        let Some(&target) = targets.get(indices[lane] as usize) else {
            let message = format!(
                "branches to entry {} of a table of {}",
                indices[lane],
                targets.len()
            );
            return Err(Trouble::new(FaultKind::Trap, lane as u32, message));
        };
        let same = lanes(rest)
            .filter(|&other| indices[other] == indices[lane])
            .fold(0, |mask, other| mask | 1 << other);
        warp.push(target, same, false);
        rest &= !same;
    }
    Ok(())
}
