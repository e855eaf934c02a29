//! The first pass over a function: its scopes, labels and registers, and the places of its variables.

use super::{FRAME_ALIGN, Kind, Lowered, Lowerer, Place, Registers, Scope, align_up};
use crate::ir::{Callee, Pc, Pred};
use crate::syntax::{Function, Statement, Variable};

/// What the first pass finds of a function.
#[derive(Default)]
pub(super) struct Declared<'t> {
    pub scopes: Vec<Scope<'t>>,
    /// Its place among all, and what of it callers see.
    pub callee: Callee,
    pub parameters: Vec<(String, u32, u32, u32)>,
}

/// The end of a variable; no device has more room than this for all of them.
fn room(at: u32, size: u32) -> Lowered<u32> {
    at.checked_add(size)
        .filter(|&end| end <= 1 << 28)
        .ok_or_else(|| "variables of more than 256 MiB".into())
}

impl<'t> Lowerer<'t> {
    /// The parameters of an entry, which a launch fills.
    fn parameters(&mut self, variables: &[Variable<'t>]) -> Lowered<Vec<(String, u32, u32, u32)>> {
        let mut offset = 0;
        let mut out = Vec::new();
        for variable in variables {
            let size = variable.size as u32;
            offset = align_up(offset, variable.align);
            let place = (Place::Param(offset), size);
            self.scopes[0].variables.insert(variable.name, place);
            out.push((variable.name.to_string(), offset, size, variable.align));
            offset = room(offset, size)?;
        }
        self.param_bytes = offset;
        Ok(out)
    }

    /// Gives a shared variable its place; dynamic ones have theirs at the end.
    pub(super) fn place_shared(&mut self, variable: &Variable<'t>) -> Lowered<Option<Place>> {
        if variable.external {
            self.dynamic.push((variable.name, variable.align));
            return Ok(None);
        }
        let at = align_up(self.shared, variable.align);
        self.shared = room(at, variable.size as u32)?;
        Ok(Some(Place::Shared(at)))
    }

    /// Dynamic shared memory lies behind all static variables, as on hardware; a launch aligns it to 16, and what its
    /// variables ask for beyond that is padding of the static part.
    pub(super) fn place_dynamic(&mut self) {
        let most = self.dynamic.iter().map(|&(_, align)| align).max();
        let start = align_up(self.shared, most.unwrap_or(0).max(16));
        for (name, _) in std::mem::take(&mut self.dynamic) {
            self.variables.insert(name, Place::Shared(start));
        }
        if most.is_some_and(|align| align > 16) {
            self.shared = start;
        }
    }

    /// Gives a variable its place in the local memory of its function.
    fn place_local(&mut self, variable: &Variable<'t>, frame: &mut u32) -> Lowered<(u32, u32)> {
        let size = variable.size as u32;
        let at = align_up(*frame, variable.align);
        *frame = room(at, size)?;
        let place = (Place::Local(at), size);
        self.scopes[self.scope]
            .variables
            .insert(variable.name, place);
        Ok((at, size))
    }

    /// First pass: scopes, labels, registers and the places of variables.
    pub(super) fn declare(
        &mut self,
        function: &Function<'t>,
        pc: &mut Pc,
    ) -> Lowered<Declared<'t>> {
        let mut out = Declared::default();
        let mut frame = 0;
        self.scopes = vec![Scope::default()];
        self.scope = 0;
        out.callee.name = function.name.into();
        out.callee.entry = *pc;
        let (rows, predicates) = (self.rows, self.predicates);
        if function.entry {
            out.parameters = self.parameters(&function.parameters)?;
        } else {
            let all = function.returns.iter().chain(&function.parameters);
            if let Some(register) = all.clone().find(|variable| variable.space != "param") {
                return Err(format!(
                    "`{}` is a parameter in a register, which is not emulated",
                    register.name
                ));
            }
            for variable in &function.returns {
                out.callee
                    .results
                    .push(self.place_local(variable, &mut frame)?);
            }
            for variable in &function.parameters {
                out.callee
                    .parameters
                    .push(self.place_local(variable, &mut frame)?);
            }
        }
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
                    if self.scopes[self.scope].labels.insert(name, *pc).is_some() {
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
                    "shared" => {
                        if let Some(place) = self.place_shared(variable)? {
                            self.scopes[self.scope]
                                .variables
                                .insert(variable.name, (place, variable.size as u32));
                        }
                    }
                    // parameters of the calls that this function makes
                    "local" | "param" => {
                        self.place_local(variable, &mut frame)?;
                    }
                    other => {
                        return Err(format!(
                            "a `.{other}` variable inside a function is not emulated"
                        ));
                    }
                },
                Statement::Instruction(_) => *pc += 1,
                Statement::Location(_) => {}
            }
        }
        // the operation behind the last instruction
        *pc += 1;
        out.callee.rows = rows..self.rows;
        out.callee.predicates = predicates..self.predicates;
        out.callee.frame = match function.entry {
            true => frame,
            false => align_up(frame, FRAME_ALIGN),
        };
        out.scopes = std::mem::take(&mut self.scopes);
        Ok(out)
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
                self.predicates = self.predicates.saturating_add(registers);
                if self.predicates > u32::from(Pred::MAX) {
                    return Err("too many predicates".into());
                }
                first
            }
            Kind::Narrow { .. } => self.new_rows(registers)?.into(),
            Kind::Wide => self.new_rows(registers.saturating_mul(2))?.into(),
        };
        self.scopes[self.scope]
            .registers
            .insert(name, Registers { kind, first, count });
        Ok(())
    }
}
