//! Functions: which of them a kernel needs, and the calls of them.

use std::collections::{HashMap, HashSet};

use super::operands::show;
use super::{Lowered, Lowerer, Modifiers, Place};
use crate::ir::{Call, CallTarget, Callee, Code};
use crate::syntax::{Ast, Function, Initial, Operand, Statement};

/// The address of the first function; each has 16 bytes, as if it were code.
const FIRST_ADDRESS: u64 = 0x7f00_0000_0000;

/// The functions of a module.
pub(crate) struct Functions<'a, 't> {
    by_name: HashMap<&'t str, &'a Function<'t>>,
    /// The numbers that stand for functions with a body.
    pub addresses: HashMap<&'t str, u64>,
    /// Those whose address the initial value of a variable takes.
    initial: Vec<&'t str>,
}

impl<'a, 't> Functions<'a, 't> {
    pub(crate) fn new(ast: &'a Ast<'t>) -> Self {
        let bodies = || ast.functions.iter().filter(|function| !function.entry);
        let pieces = ast.variables.iter().flat_map(|variable| &variable.init);
        let by_name: HashMap<_, _> = bodies().map(|function| (function.name, function)).collect();
        let initial = pieces
            .filter_map(|piece| match piece {
                Initial::Address(name, _) => Some(*name),
                Initial::Bytes(_) => None,
            })
            .filter(|name| by_name.contains_key(name))
            .collect();
        Functions {
            addresses: bodies()
                .enumerate()
                .map(|(at, function)| (function.name, FIRST_ADDRESS + 16 * at as u64))
                .collect(),
            by_name,
            initial,
        }
    }

    /// What `entry` may call, callees before callers where that can be.
    pub(super) fn reached(&self, entry: &'a Function<'t>) -> Vec<&'a Function<'t>> {
        let mut walk = Walk {
            functions: self,
            seen: HashSet::new(),
            order: Vec::new(),
            indirect: false,
            taken: Vec::new(),
        };
        walk.visit(entry);
        // a call through a register may reach whatever has an address
        while walk.indirect {
            walk.indirect = false;
            let taken = std::mem::take(&mut walk.taken);
            for name in self.initial.iter().chain(&taken) {
                walk.enter(name);
                // what it calls may take addresses too
                walk.indirect |= !walk.taken.is_empty();
            }
        }
        walk.order
    }
}

/// A walk over the calls of a program.
struct Walk<'f, 'a, 't> {
    functions: &'f Functions<'a, 't>,
    seen: HashSet<&'t str>,
    order: Vec<&'a Function<'t>>,
    indirect: bool,
    taken: Vec<&'t str>,
}

impl<'a, 't> Walk<'_, 'a, 't> {
    fn enter(&mut self, name: &'t str) {
        if let Some(&function) = self.functions.by_name.get(name)
            && self.seen.insert(name)
        {
            self.visit(function);
            self.order.push(function);
        }
    }

    fn visit(&mut self, function: &'a Function<'t>) {
        for statement in &function.body {
            let Statement::Instruction(instruction) = statement else {
                continue;
            };
            let call = instruction.opcode.split('.').next() == Some("call");
            for operand in &instruction.operands {
                let Operand::Name(name) = operand else {
                    continue;
                };
                if !self.functions.by_name.contains_key(name) {
                    self.indirect |= call && name.starts_with('%');
                } else if call {
                    self.enter(name);
                } else {
                    self.taken.push(name);
                }
            }
        }
    }
}

/// `call{.uni} (result), function, (arguments){, prototype}`
pub(super) fn call<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'t>],
) -> Lowered<Code> {
    m.take("uni");
    let (results, rest) = match operands {
        [Operand::Vector(results), rest @ ..] => (&results[..], rest),
        rest => (&[][..], rest),
    };
    let (Some(Operand::Name(name)), arguments) = (rest.first(), rest.get(1)) else {
        return Err("takes a function".into());
    };
    let arguments = match arguments {
        Some(Operand::Vector(arguments)) => &arguments[..],
        _ => &[],
    };
    let results = l.pieces(results)?;
    let arguments = l.pieces(arguments)?;
    let target = if l.register(name).is_some() {
        CallTarget::Indirect(l.wide(&Operand::Name(name))?)
    } else if let Some(index) = l.order.get(name) {
        let callee = &l.signatures[*index];
        let sizes = |pieces: &[(u32, u32)]| -> Vec<u32> {
            pieces.iter().map(|&(_, bytes)| bytes).collect()
        };
        if sizes(&arguments) != callee.0 || sizes(&results) != callee.1 {
            return Err(format!(
                "`{name}` takes or returns parameters of other sizes"
            ));
        }
        CallTarget::Function(*index)
    } else {
        match (*name, arguments.len()) {
            ("vprintf", 2) => CallTarget::Print,
            ("__assertfail", 5) => CallTarget::AssertFail,
            _ => {
                return Err(format!(
                    "`{name}` has no body in this module, and is not one of vprintf and __assertfail"
                ));
            }
        }
    };
    Ok(Code::Call(Box::new(Call {
        target,
        arguments,
        results,
    })))
}

/// `ret` leaves a function; in an entry it ends the thread.
pub(super) fn ret<'t>(
    l: &mut Lowerer<'t>,
    m: &mut Modifiers<'_>,
    _: &[Operand<'t>],
) -> Lowered<Code> {
    m.take("uni");
    Ok(match l.callee {
        Some(_) => Code::Return,
        None => Code::Exit,
    })
}

impl<'t> Lowerer<'t> {
    /// Does an address name a parameter or a local variable of the function at hand?
    pub(super) fn is_frame(&self, operand: &Operand<'t>) -> bool {
        match operand {
            Operand::Address {
                base: Some(name), ..
            } => matches!(self.place(name), Some(Place::Local(_))),
            _ => false,
        }
    }

    /// Offset and bytes of the parameters that a call names.
    fn pieces(&self, operands: &[Operand<'t>]) -> Lowered<Vec<(u32, u32)>> {
        let piece = |operand: &Operand<'t>| match operand {
            Operand::Name(name) => match self.local_variable(name) {
                Some((Place::Local(at), bytes)) => Ok((at, bytes)),
                _ => Err(format!(
                    "`{name}` is no parameter in memory: registers are not emulated"
                )),
            },
            other => Err(format!("`{}` is no parameter in memory", show(other))),
        };
        operands.iter().map(piece).collect()
    }
}

/// Marks the functions that may be called while they run; the most bytes that frames take beside those.
pub(super) fn depth(functions: &mut [Callee], calls: &[Vec<usize>], from: &[usize]) -> u32 {
    for at in 0..functions.len() {
        let mut seen = vec![false; functions.len()];
        let mut open = calls[at].clone();
        while let Some(next) = open.pop() {
            if !std::mem::replace(&mut seen[next], true) {
                open.extend(&calls[next]);
            }
        }
        functions[at].recursive = seen[at];
    }
    let mut known = vec![None; functions.len()];
    from.iter()
        .map(|&at| frames(functions, calls, at, &mut known))
        .max()
        .unwrap_or(0)
}

/// The bytes of the deepest chain of calls from a function, a recursive one counted once.
fn frames(functions: &[Callee], calls: &[Vec<usize>], at: usize, known: &mut [Option<u32>]) -> u32 {
    if let Some(bytes) = known[at] {
        return bytes;
    }
    // while it is open it counts as nothing: a cycle ends here
    known[at] = Some(0);
    let below = calls[at]
        .iter()
        .map(|&next| frames(functions, calls, next, known))
        .max()
        .unwrap_or(0);
    let bytes = functions[at].frame.saturating_add(below);
    known[at] = Some(bytes);
    bytes
}
