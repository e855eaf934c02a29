//! mbarriers and what else came with Hopper beside copies and matrices.

use super::{Lowered, Lowerer, Modifiers, memory};
use crate::ir::{Address, Code, Hopper, Mbarrier, MbarrierOp, Slot};
use crate::syntax::Operand;

fn unknown<T>(m: &Modifiers<'_>) -> Lowered<T> {
    Err(format!("the opcode `{}` is not emulated", m.opcode()))
}

/// Takes `.relaxed` and its like, and the scope; true unless it is relaxed.
pub(super) fn orders(m: &mut Modifiers<'_>) -> bool {
    let word = m.take_any(&["release", "acquire", "relaxed"]);
    m.take_any(&["cta", "cluster"]);
    word != Some("relaxed")
}

/// `mbarrier.*`
pub(super) fn mbarrier<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    if !m.take("b64") {
        return unknown(m);
    }
    let word = m.take_any(&[
        "init",
        "inval",
        "expect_tx",
        "complete_tx",
        "arrive",
        "arrive_drop",
        "test_wait",
        "try_wait",
        "pending_count",
    ]);
    if word == Some("pending_count") {
        l.count(operands, 2)?;
        return Ok(Code::hopper(Hopper::PendingCount {
            d: l.narrow_out(&operands[0])?,
            state: l.wide(&operands[1])?,
        }));
    }
    // `arrive.expect_tx` lost its arrive above if the words stood the other way round
    let (word, expects) = match word {
        Some("expect_tx") => match m.take_any(&["arrive", "arrive_drop"]) {
            Some(arrive) => (Some(arrive), true),
            None => (word, false),
        },
        word => (word, m.take("expect_tx")),
    };
    let orders = orders(m);
    let space = memory::space(m);
    let address = |l: &mut Lowerer<'t>, operand: &Operand<'t>| -> Lowered<Address> {
        l.shared_access(8);
        memory::located(l, operand, space)
    };
    let (op, at) = match word {
        Some("init") => {
            l.count(operands, 2)?;
            let count = l.narrow(&operands[1])?;
            (MbarrierOp::Init { count }, address(l, &operands[0])?)
        }
        Some("inval") => {
            l.count(operands, 1)?;
            (MbarrierOp::Invalidate, address(l, &operands[0])?)
        }
        Some("expect_tx") => {
            l.count(operands, 2)?;
            let bytes = l.narrow(&operands[1])?;
            (MbarrierOp::ExpectTx { bytes }, address(l, &operands[0])?)
        }
        Some("complete_tx") => {
            l.count(operands, 2)?;
            let bytes = l.narrow(&operands[1])?;
            (MbarrierOp::CompleteTx { bytes }, address(l, &operands[0])?)
        }
        Some(arrive @ ("arrive" | "arrive_drop")) => {
            let no_complete = m.take("noComplete");
            if !(2..=3).contains(&operands.len()) || (expects && operands.len() == 2) {
                return Err(format!(
                    "takes a state, an mbarrier and a count, found {} operands",
                    operands.len()
                ));
            }
            let state = match &operands[0] {
                Operand::Sink => None,
                operand => Some(l.wide_out(operand)?),
            };
            let third: Option<Slot> = operands.get(2).map(|o| l.narrow(o)).transpose()?;
            if no_complete && third.is_none() {
                return Err("the count is missing".into());
            }
            let op = MbarrierOp::Arrive {
                count: third.filter(|_| !expects),
                bytes: third.filter(|_| expects),
                drop: arrive == "arrive_drop",
                no_complete,
                state,
            };
            (op, address(l, &operands[1])?)
        }
        Some("test_wait" | "try_wait") => {
            let parity = m.take("parity");
            // the fourth operand of try_wait is a hint of how long it may take
            let most = if word == Some("try_wait") { 4 } else { 3 };
            if !(3..=most).contains(&operands.len()) {
                return Err(format!("takes 3 operands, found {}", operands.len()));
            }
            let d = l.predicate_out(&operands[0])?;
            let op = if parity {
                MbarrierOp::TestParity {
                    d,
                    parity: l.narrow(&operands[2])?,
                }
            } else {
                MbarrierOp::TestState {
                    d,
                    state: l.wide(&operands[2])?,
                }
            };
            (op, address(l, &operands[1])?)
        }
        _ => return unknown(m),
    };
    Ok(Code::hopper(Hopper::Mbarrier(Mbarrier { op, at, orders })))
}

/// `cp.async.mbarrier.arrive`
pub(super) fn copy_arrive<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    if !(m.take("arrive") && m.take("b64")) {
        return unknown(m);
    }
    l.count(operands, 1)?;
    let increment = !m.take("noinc");
    let space = memory::space(m);
    l.shared_access(8);
    Ok(Code::hopper(Hopper::CopyArrive {
        at: memory::located(l, &operands[0], space)?,
        increment,
    }))
}

/// `elect.sync d|p, members`
pub(super) fn elect<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 2)?;
    if !m.take("sync") {
        return unknown(m);
    }
    let (d, p) = l.narrow_out_with_predicate(&operands[0])?;
    Ok(Code::hopper(Hopper::Elect {
        d,
        p,
        members: l.narrow(&operands[1])?,
    }))
}

/// `setmaxnreg.{inc,dec}.sync.aligned.u32 count`
pub(super) fn set_registers<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    l.count(operands, 1)?;
    let more = match m.take_any(&["inc", "dec"]) {
        Some(word) => word == "inc",
        None => return unknown(m),
    };
    if !(m.take("sync") && m.take("aligned") && m.take("u32")) {
        return unknown(m);
    }
    match operands[0] {
        Operand::Integer(count) if (24..=256).contains(&count) && count % 8 == 0 => {
            Ok(Code::hopper(Hopper::SetRegisters {
                count: count as u32,
                more,
            }))
        }
        _ => Err("takes a multiple of 8 from 24 to 256".into()),
    }
}
