//! Syntax tree to operations: registers become slots, labels become indices, opcodes become [`Code`].
//!
//! One instruction becomes exactly one operation, so that a program counter is an instruction's index.
//! An opcode or modifier that is not in the table (`isa.rs`) is an error that names it: never a guess.

mod arithmetic;
mod atomic;
mod bulk;
mod cluster;
mod compare;
mod control;
mod convert;
mod hopper;
mod isa;
mod lanes;
mod logic;
mod matrix;
mod memory;
mod modifiers;
mod operands;
mod video;
mod wgmma;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use crate::class::Class;
use crate::ir::{
    ALWAYS, Body, Code, Constant, Hopper, Op, Origin, Pc, Pred, SINK, Slot, WgmmaSource,
};
use crate::syntax::{Function, Guard, Instruction, Location, Statement, Variable};

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

/// A function's memory needs and its lowered body.
pub(crate) struct LoweredKernel {
    pub body: Body,
    pub static_shared: u32,
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

/// Labels and registers of one `{ }`.
#[derive(Default)]
struct Scope<'t> {
    parent: usize,
    labels: HashMap<&'t str, Pc>,
    tables: HashMap<&'t str, Vec<&'t str>>,
    registers: HashMap<&'t str, Registers>,
}

pub(crate) struct Lowerer<'t> {
    scopes: Vec<Scope<'t>>,
    /// The scope of the instruction at hand.
    scope: usize,
    variables: HashMap<&'t str, Place>,
    constants: HashMap<Constant, Slot>,
    rows: u32,
    predicates: u32,
    /// Bytes of all parameters.
    param_bytes: u32,
    /// A slot pair for results nobody wants.
    sink: Slot,
    grain: u32,
    /// The carry flag, once an instruction has it.
    carry: Option<Pred>,
    /// Rows of the registers that the instruction at hand names.
    named: RefCell<Vec<Slot>>,
}

/// Lowers one entry; `module` names the variables of module scope.
pub(crate) fn lower<'t>(
    function: &Function<'t>,
    module: &HashMap<&'t str, Place>,
    module_shared: &[Variable<'t>],
) -> Result<LoweredKernel, LowerError> {
    let at = |line: u32| move |message: String| LowerError { line, message };
    let mut lowerer = Lowerer {
        scopes: vec![Scope::default()],
        scope: 0,
        variables: module.clone(),
        constants: HashMap::new(),
        rows: 0,
        // ALWAYS and SINK
        predicates: 2,
        param_bytes: 0,
        sink: 0,
        grain: 16,
        carry: None,
        named: RefCell::default(),
    };
    lowerer.sink = lowerer.new_rows(2).map_err(at(function.line))?;
    let parameters = lowerer.parameters(&function.parameters);
    let memory = lowerer
        .declare(function, module_shared)
        .map_err(at(function.line))?;
    let mut body = Body::default();
    let mut location = Location::default();
    let mut opened = 0;
    let mut named = Vec::new();
    lowerer.scope = 0;
    for statement in &function.body {
        match statement {
            Statement::Open => {
                opened += 1;
                lowerer.scope = opened;
            }
            Statement::Close => lowerer.scope = lowerer.scopes[lowerer.scope].parent,
            Statement::Location(here) => location = *here,
            Statement::Instruction(instruction) => {
                lowerer.named.borrow_mut().clear();
                let op = lowerer
                    .instruction(instruction)
                    .map_err(|message| LowerError {
                        line: instruction.line,
                        message: format!("`{}`: {message}", text(instruction)),
                    })?;
                body.classes.push(Class::of(&op.code));
                named.push(match &op.code {
                    Code::Hopper(op) if matches!(**op, Hopper::Wgmma(_)) => Vec::new(),
                    _ => lowerer.named.take(),
                });
                body.ops.push(op);
                body.origins.push(Origin {
                    ptx: instruction.line,
                    file: location.file,
                    source: location.line,
                });
                body.texts.push(text(instruction).into());
            }
            Statement::Label(_)
            | Statement::Register { .. }
            | Statement::Variable(_)
            | Statement::BranchTargets { .. } => {}
        }
    }
    // the registers of products, in every instruction that names them
    let products = product_slots(&body.ops);
    if !products.is_empty() {
        named.push(Vec::new());
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
    // falling off the end is an exit
    body.ops.push(Op {
        code: Code::Exit,
        guard: ALWAYS,
        negated: false,
    });
    body.classes.push(Class::Control);
    body.origins
        .push(body.origins.last().copied().unwrap_or_default());
    body.texts.push("}".into());
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
    body.rows = lowerer.rows;
    body.predicates = lowerer.predicates;
    body.shared_grain = lowerer.grain;
    Ok(LoweredKernel {
        body,
        static_shared: memory.0,
        local_bytes: memory.1,
        parameters,
    })
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

/// The instruction as a line of PTX.
fn text(instruction: &Instruction<'_>) -> String {
    let guard = match instruction.guard {
        Some(Guard {
            predicate,
            negated: true,
        }) => format!("@!{predicate} "),
        Some(Guard {
            predicate,
            negated: false,
        }) => format!("@{predicate} "),
        None => String::new(),
    };
    let operands: Vec<String> = instruction.operands.iter().map(operands::show).collect();
    if operands.is_empty() {
        return format!("{guard}{};", instruction.opcode);
    }
    format!("{guard}{} {};", instruction.opcode, operands.join(", "))
}

fn align_up(value: u32, align: u32) -> u32 {
    value.next_multiple_of(align.max(1))
}

impl<'t> Lowerer<'t> {
    fn new_rows(&mut self, rows: u32) -> Lowered<Slot> {
        let slot = Slot::try_from(self.rows)
            .map_err(|_| "too many registers: more than 65,536 rows".to_string())?;
        self.rows += rows;
        if self.rows > u32::from(Slot::MAX) {
            return Err("too many registers: more than 65,536 rows".into());
        }
        Ok(slot)
    }

    fn parameters(&mut self, variables: &[Variable<'t>]) -> Vec<(String, u32, u32, u32)> {
        let mut offset = 0;
        let mut out = Vec::new();
        for variable in variables {
            let size = variable.size as u32;
            offset = align_up(offset, variable.align);
            self.variables.insert(variable.name, Place::Param(offset));
            out.push((variable.name.to_string(), offset, size, variable.align));
            offset += size;
        }
        self.param_bytes = offset;
        out
    }

    /// First pass: scopes, labels, registers and the places of variables. Returns static shared and local bytes.
    fn declare(
        &mut self,
        function: &Function<'t>,
        module_shared: &[Variable<'t>],
    ) -> Lowered<(u32, u32)> {
        let (mut shared, mut local) = (0, 0);
        let mut dynamic = Vec::new();
        let mut place_shared = |variables: &mut HashMap<&'t str, Place>,
                                variable: &Variable<'t>| {
            if variable.external {
                dynamic.push((variable.name, variable.align));
                return;
            }
            shared = align_up(shared, variable.align);
            variables.insert(variable.name, Place::Shared(shared));
            shared += variable.size as u32;
        };
        for variable in module_shared {
            place_shared(&mut self.variables, variable);
        }
        let mut pc = 0;
        for statement in &function.body {
            match statement {
                Statement::Open => {
                    self.scopes.push(Scope {
                        parent: self.scope,
                        ..Scope::default()
                    });
                    self.scope = self.scopes.len() - 1;
                }
                Statement::Close => self.scope = self.scopes[self.scope].parent,
                Statement::Label(name) => {
                    if self.scopes[self.scope].labels.insert(name, pc).is_some() {
                        return Err(format!("label `{name}` stands twice in one scope"));
                    }
                }
                Statement::BranchTargets { name, targets } => {
                    self.scopes[self.scope].tables.insert(name, targets.clone());
                }
                Statement::Register { kind, name, count } => {
                    self.declare_registers(kind, name, *count)?
                }
                Statement::Variable(variable) => match variable.space {
                    "shared" => place_shared(&mut self.variables, variable),
                    "local" => {
                        local = align_up(local, variable.align);
                        self.variables.insert(variable.name, Place::Local(local));
                        local += variable.size as u32;
                    }
                    other => {
                        return Err(format!(
                            "a `.{other}` variable inside a function is not emulated"
                        ));
                    }
                },
                Statement::Instruction(_) => pc += 1,
                Statement::Location(_) => {}
            }
        }
        // dynamic shared memory lies behind all static variables, as on hardware; a launch aligns it to 16, and what its
        // variables ask for beyond that is padding of the static part
        let most = dynamic.iter().map(|&(_, align)| align).max();
        let start = align_up(shared, most.unwrap_or(0).max(16));
        for (name, _) in dynamic {
            self.variables.insert(name, Place::Shared(start));
        }
        if most.is_some_and(|align| align > 16) {
            shared = start;
        }
        Ok((shared, local))
    }

    fn declare_registers(&mut self, kind: &str, name: &'t str, count: u32) -> Lowered<()> {
        let kind = match kind {
            "pred" => Kind::Pred,
            "b8" | "u8" | "s8" => Kind::Narrow { bits: 8 },
            "b16" | "u16" | "s16" | "f16" | "bf16" => Kind::Narrow { bits: 16 },
            "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => Kind::Narrow { bits: 32 },
            "b64" | "u64" | "s64" | "f64" => Kind::Wide,
            other => return Err(format!("registers of type `.{other}` are not emulated")),
        };
        let registers = count.max(1);
        let first = match kind {
            Kind::Pred => {
                let first = self.predicates;
                self.predicates += registers;
                if self.predicates > u32::from(Pred::MAX) {
                    return Err("too many predicates".into());
                }
                first
            }
            Kind::Narrow { .. } => self.new_rows(registers)?.into(),
            Kind::Wide => self.new_rows(2 * registers)?.into(),
        };
        self.scopes[self.scope]
            .registers
            .insert(name, Registers { kind, first, count });
        Ok(())
    }

    /// Finds a register by name: `%r12` is the 12th of `%r<…>`.
    fn register(&self, name: &str) -> Option<(Kind, u32)> {
        let found = self.find_register(name);
        if let Some((kind, row)) = found
            && kind != Kind::Pred
        {
            let rows = if kind == Kind::Wide { 2 } else { 1 };
            let rows = (row..row + rows).map(|row| row as Slot);
            self.named.borrow_mut().extend(rows);
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
