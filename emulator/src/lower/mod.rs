//! Syntax tree to operations: registers become slots, labels become indices, opcodes become [`Code`].
//!
//! One instruction becomes exactly one operation, so that a program counter is an instruction's index.
//! An opcode or modifier that is not in the table (`isa.rs`) is an error that names it: never a guess.

mod arithmetic;
mod atomic;
mod bulk;
mod call;
mod cluster;
mod compare;
mod control;
mod convert;
mod declare;
mod hopper;
mod isa;
mod lanes;
mod logic;
mod matrix;
mod memory;
mod modifiers;
mod operands;
mod tensor_map;
mod video;
mod wgmma;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use crate::class::Class;
use crate::ir::{
    ALWAYS, Body, CallTarget, Code, Constant, Hopper, Op, Origin, Pc, Pred, SINK, Slot, WgmmaSource,
};
use crate::syntax::{Function, Instruction, Location, Statement, Variable};

pub(crate) use call::Functions;
use declare::Declared;
pub(crate) use modifiers::Modifiers;

/// Why an instruction cannot be lowered; the caller adds where.
pub(crate) type Lowered<T> = Result<T, String>;

/// Where a variable lives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// Index in the module's list of global and const variables.
    Global(u32),
    /// Offset in the block's shared memory.
    Shared(u32),
    /// Offset in the thread's local memory.
    Local(u32),
    /// Offset in the parameters.
    Param(u32),
}

/// A kernel's memory needs and its lowered body, with the functions it calls.
pub(crate) struct LoweredKernel {
    pub body: Body,
    pub static_shared: u32,
    /// Local memory of the entry, and of the entry with the deepest chain of calls.
    pub frame_bytes: u32,
    pub local_bytes: u32,
    /// Offset and size of each parameter.
    pub parameters: Vec<(String, u32, u32, u32)>,
}

/// What went wrong and on which PTX line.
pub(crate) struct LowerError {
    pub line: u32,
    pub message: String,
}

/// How a declared register is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pred,
    /// 8, 16 or 32 bits: one row.
    Narrow {
        bits: u8,
    },
    Wide,
}

#[derive(Debug, Clone, Copy)]
struct Registers {
    kind: Kind,
    first: u32,
    /// 0 for a single register.
    count: u32,
}

/// Labels, registers and variables of one `{ }`.
#[derive(Default)]
struct Scope<'t> {
    parent: usize,
    labels: HashMap<&'t str, Pc>,
    tables: HashMap<&'t str, Vec<&'t str>>,
    registers: HashMap<&'t str, Registers>,
    /// Where a variable lives, and its bytes.
    variables: HashMap<&'t str, (Place, u32)>,
}

/// Bytes of the parameters and of the results of a function.
type Signature = (Vec<u32>, Vec<u32>);

pub(crate) struct Lowerer<'t> {
    scopes: Vec<Scope<'t>>,
    /// The scope of the instruction at hand.
    scope: usize,
    /// Variables of module scope.
    variables: HashMap<&'t str, Place>,
    constants: HashMap<Constant, Slot>,
    rows: u32,
    predicates: u32,
    /// Bytes of all parameters.
    param_bytes: u32,
    /// Bytes of static shared memory so far.
    shared: u32,
    /// Dynamic shared variables and their alignment.
    dynamic: Vec<(&'t str, u32)>,
    /// A slot pair for results nobody wants.
    sink: Slot,
    grain: u32,
    /// The carry flag, once an instruction has it.
    carry: Option<Pred>,
    /// The numbers that stand for functions.
    addresses: HashMap<&'t str, u64>,
    /// The functions of this kernel: index by name, and what they take and give.
    order: HashMap<&'t str, usize>,
    signatures: Vec<Signature>,
    /// The function at hand; `None` in the entry.
    callee: Option<usize>,
    /// Registers of the function at hand that hold addresses in its frame, by offset.
    frame: HashMap<u32, Slot>,
    /// The kernel has instructions of wgmma, whose registers others must leave alone.
    products: bool,
    /// Rows of the registers that the instruction at hand names, where there are products.
    named: RefCell<Vec<Slot>>,
}

/// Lowers one entry and the functions it may call; `module` names the variables of module scope.
pub(crate) fn lower<'t>(
    function: &Function<'t>,
    functions: &Functions<'_, 't>,
    module: &HashMap<&'t str, Place>,
    module_shared: &[Variable<'t>],
) -> Result<LoweredKernel, LowerError> {
    let at = |line: u32| move |message: String| LowerError { line, message };
    let mut lowerer = Lowerer {
        scopes: Vec::new(),
        scope: 0,
        variables: module.clone(),
        constants: HashMap::new(),
        rows: 0,
        // ALWAYS and SINK
        predicates: 2,
        param_bytes: 0,
        shared: 0,
        dynamic: Vec::new(),
        sink: 0,
        grain: 16,
        carry: None,
        addresses: functions.addresses.clone(),
        order: HashMap::new(),
        signatures: Vec::new(),
        callee: None,
        frame: HashMap::new(),
        products: false,
        named: RefCell::default(),
    };
    lowerer.sink = lowerer.new_rows(2).map_err(at(function.line))?;
    for variable in module_shared {
        if let Some(place) = lowerer.place_shared(variable).map_err(at(function.line))? {
            lowerer.variables.insert(variable.name, place);
        }
    }
    let reached = functions.reached(function);
    let is_product = |statement: &Statement<'_>| matches!(statement, Statement::Instruction(i) if i.opcode.starts_with("wgmma"));
    lowerer.products =
        (reached.iter().chain([&function])).any(|unit| unit.body.iter().any(is_product));
    let mut units = Vec::new();
    let mut pc = 0;
    for (index, &unit) in reached.iter().chain([&function]).enumerate() {
        lowerer.callee = (!unit.entry).then_some(index);
        let declared = lowerer.declare(unit, &mut pc).map_err(at(unit.line))?;
        if lowerer.callee.is_some() {
            let sizes = |pieces: &[(u32, u32)]| pieces.iter().map(|piece| piece.1).collect();
            let callee = &declared.callee;
            lowerer
                .signatures
                .push((sizes(&callee.parameters), sizes(&callee.results)));
            lowerer.order.insert(unit.name, index);
        }
        units.push((unit, declared));
    }
    lowerer.place_dynamic();
    let mut body = Body::default();
    let mut calls = Vec::new();
    let mut last = Declared::default();
    let mut named = Vec::new();
    for (index, (unit, mut declared)) in units.into_iter().enumerate() {
        lowerer.callee = (!unit.entry).then_some(index);
        lowerer.scopes = std::mem::take(&mut declared.scopes);
        lowerer.frame.clear();
        let start = body.ops.len();
        lowerer.body(unit, &mut body, &mut named)?;
        calls.push(called(&body.ops[start..], reached.len()));
        declared.callee.addresses = lowerer
            .frame
            .iter()
            .map(|(&offset, &slot)| (slot, offset))
            .collect();
        declared.callee.address = functions.addresses.get(unit.name).copied().unwrap_or(0);
        if unit.entry {
            last = declared;
        } else {
            body.functions.push(declared.callee);
        }
    }
    let from = calls.pop().unwrap_or_default();
    let depth = call::depth(&mut body.functions, &calls, &from);
    let frame_bytes = match reached.is_empty() {
        true => last.callee.frame,
        false => align_up(last.callee.frame, FRAME_ALIGN),
    };
    body.entry = last.callee.entry;
    // the registers of products, in every instruction that names them
    let products = product_slots(&body.ops);
    if !products.is_empty() {
        body.product_slots = named
            .into_iter()
            .map(|slots| {
                slots
                    .into_iter()
                    .filter(|slot| products.contains(slot))
                    .collect()
            })
            .collect();
    }
    body.constants = lowerer
        .constants
        .iter()
        .map(|(&constant, &slot)| (slot, constant))
        .collect();
    body.constants.sort_by_key(|&(slot, _)| slot);
    body.async_proxy = body
        .ops
        .iter()
        .any(|op| matches!(&op.code, Code::Hopper(op) if op.is_async_proxy()));
    body.synchronises = body.ops.iter().any(|op| match &op.code {
        Code::Load(access) => access.order.is_strong(),
        Code::Atomic(atomic) => atomic.reads,
        Code::AtomicVector(elements) => elements.iter().any(|element| element.reads),
        _ => false,
    });
    body.rows = lowerer.rows;
    body.predicates = lowerer.predicates;
    body.shared_grain = lowerer.grain;
    Ok(LoweredKernel {
        body,
        static_shared: lowerer.shared,
        frame_bytes,
        local_bytes: frame_bytes.saturating_add(depth),
        parameters: last.parameters,
    })
}

/// What operations call; a call through a register may reach every function.
fn called(ops: &[Op], functions: usize) -> Vec<usize> {
    let mut out = Vec::new();
    for op in ops {
        match &op.code {
            Code::Call(call) => match call.target {
                CallTarget::Function(index) => out.push(index),
                CallTarget::Indirect(_) => out.extend(0..functions),
                CallTarget::Print | CallTarget::AssertFail => {}
            },
            _ => continue,
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// The rows of accumulators of wgmma, and of A where it is in registers.
fn product_slots(ops: &[Op]) -> HashSet<Slot> {
    let mut out = HashSet::new();
    for op in ops {
        if let Code::Hopper(op) = &op.code
            && let Hopper::Wgmma(wgmma) = &**op
        {
            out.extend(&wgmma.d);
            if let WgmmaSource::Registers(slots) = wgmma.a {
                out.extend(slots);
            }
        }
    }
    out
}

/// What the frames of functions are aligned to.
const FRAME_ALIGN: u32 = 16;

fn align_up(value: u32, align: u32) -> u32 {
    value.next_multiple_of(align.max(1))
}

impl<'t> Lowerer<'t> {
    fn new_rows(&mut self, rows: u32) -> Lowered<Slot> {
        let slot = Slot::try_from(self.rows)
            .map_err(|_| "too many registers: more than 65,536 rows".to_string())?;
        self.rows = self.rows.saturating_add(rows);
        if self.rows > u32::from(Slot::MAX) {
            return Err("too many registers: more than 65,536 rows".into());
        }
        Ok(slot)
    }

    /// Second pass: the operations of a function.
    fn body(
        &mut self,
        function: &Function<'t>,
        body: &mut Body,
        named: &mut Vec<Vec<Slot>>,
    ) -> Result<(), LowerError> {
        let mut location = Location::default();
        let mut opened = 0;
        self.scope = 0;
        for statement in &function.body {
            match statement {
                Statement::Open => {
                    opened += 1;
                    self.scope = opened;
                }
                Statement::Close => self.scope = self.scopes[self.scope].parent,
                Statement::Location(here) => location = *here,
                Statement::Instruction(instruction) => {
                    self.named.borrow_mut().clear();
                    let op = self
                        .instruction(instruction)
                        .map_err(|message| LowerError {
                            line: instruction.line,
                            message: format!("`{}`: {message}", operands::text(instruction)),
                        })?;
                    body.classes.push(Class::of(&op.code));
                    if self.products {
                        named.push(match &op.code {
                            Code::Hopper(op) if matches!(**op, Hopper::Wgmma(_)) => Vec::new(),
                            _ => self.named.take(),
                        });
                    }
                    body.ops.push(op);
                    body.origins.push(Origin {
                        ptx: instruction.line,
                        file: location.file,
                        source: location.line,
                    });
                    body.texts
                        .push(|out| operands::write_text(instruction, out));
                    body.near.push(isa::is_near(instruction.opcode));
                }
                Statement::Label(_)
                | Statement::Register { .. }
                | Statement::Variable(_)
                | Statement::BranchTargets { .. } => {}
            }
        }
        // falling off the end is an exit
        body.ops.push(Op {
            code: match self.callee {
                Some(_) => Code::Return,
                None => Code::Exit,
            },
            guard: ALWAYS,
            negated: false,
        });
        body.classes.push(Class::Control);
        body.origins
            .push(body.origins.last().copied().unwrap_or_default());
        body.texts.push(|out| out.push('}'));
        body.near.push(false);
        if self.products {
            named.push(Vec::new());
        }
        Ok(())
    }

    /// Where a variable lives, by its name in the scopes around the instruction at hand.
    fn variable(&self, name: &str) -> Option<Place> {
        match self.local_variable(name) {
            Some((place, _)) => Some(place),
            None => self.variables.get(name).copied(),
        }
    }

    /// A variable of the function at hand, and its bytes.
    fn local_variable(&self, name: &str) -> Option<(Place, u32)> {
        let mut scope = self.scope;
        loop {
            let found = self.scopes[scope].variables.get(name);
            if found.is_some() || scope == 0 {
                return found.copied();
            }
            scope = self.scopes[scope].parent;
        }
    }

    /// The register of an address in the frame of the function at hand: where that lies is known when it is called.
    fn frame_address(&mut self, offset: i64) -> Lowered<Slot> {
        let offset = u32::try_from(offset).map_err(|_| "an address below the frame".to_string())?;
        if let Some(&slot) = self.frame.get(&offset) {
            return Ok(slot);
        }
        let slot = self.new_rows(2)?;
        self.frame.insert(offset, slot);
        Ok(slot)
    }

    /// Finds a register by name: `%r12` is the 12th of `%r<…>`.
    fn register(&self, name: &str) -> Option<(Kind, u32)> {
        let found = self.find_register(name);
        if let Some((kind, row)) = found
            && kind != Kind::Pred
        {
            let rows = if kind == Kind::Wide { 2 } else { 1 };
            if self.products {
                let rows = (row..row + rows).map(|row| row as Slot);
                self.named.borrow_mut().extend(rows);
            }
        }
        found
    }

    fn find_register(&self, name: &str) -> Option<(Kind, u32)> {
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(name.len() - digits);
        let mut scope = self.scope;
        loop {
            let registers = &self.scopes[scope].registers;
            if let Some(found) = registers.get(name).filter(|found| found.count == 0) {
                return Some((found.kind, found.first));
            }
            if let (Some(found), Ok(index)) = (registers.get(prefix), number.parse::<u32>())
                && index < found.count
            {
                let step = if found.kind == Kind::Wide { 2 } else { 1 };
                return Some((found.kind, found.first + step * index));
            }
            if scope == 0 {
                return None;
            }
            scope = self.scopes[scope].parent;
        }
    }

    fn label(&self, name: &str) -> Lowered<Pc> {
        let mut scope = self.scope;
        loop {
            if let Some(&pc) = self.scopes[scope].labels.get(name) {
                return Ok(pc);
            }
            if scope == 0 {
                return Err(format!("no label `{name}`"));
            }
            scope = self.scopes[scope].parent;
        }
    }

    fn table(&self, name: &str) -> Lowered<Vec<Pc>> {
        let mut scope = self.scope;
        loop {
            if let Some(targets) = self.scopes[scope].tables.get(name) {
                return targets.iter().map(|target| self.label(target)).collect();
            }
            if scope == 0 {
                return Err(format!("no branch table `{name}`"));
            }
            scope = self.scopes[scope].parent;
        }
    }

    fn constant(&mut self, constant: Constant) -> Lowered<Slot> {
        if let Some(&slot) = self.constants.get(&constant) {
            return Ok(slot);
        }
        let rows = match constant {
            Constant::Double(_) | Constant::Param64(_) | Constant::Global { .. } => 2,
            Constant::Word(_) | Constant::Special(_) | Constant::Param32(_) => 1,
        };
        let slot = self.new_rows(rows)?;
        self.constants.insert(constant, slot);
        Ok(slot)
    }

    /// Notes the bytes of a shared access: the grain of race detection is the least of them.
    fn shared_access(&mut self, bytes: u32) {
        self.grain = self.grain.min(bytes);
    }

    fn instruction(&mut self, instruction: &Instruction<'t>) -> Lowered<Op> {
        let (guard, negated) = match instruction.guard {
            None => (ALWAYS, false),
            Some(guard) => match self.register(guard.predicate) {
                Some((Kind::Pred, index)) => (index as Pred, guard.negated),
                _ => return Err(format!("`{}` is not a predicate", guard.predicate)),
            },
        };
        let mut modifiers = Modifiers::new(instruction.opcode);
        let lower = isa::find(modifiers.mnemonic)
            .ok_or_else(|| format!("the opcode `{}` is not emulated", instruction.opcode))?;
        let code = lower(self, &mut modifiers, &instruction.operands)?;
        modifiers.finish()?;
        Ok(Op {
            code,
            guard,
            negated,
        })
    }

    fn sink_predicate(&self) -> Pred {
        SINK
    }
}
