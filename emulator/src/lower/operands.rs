//! Operands to slots and predicates.

use super::{Kind, Lowered, Lowerer, Place};
use crate::ir::{Constant, Pred, Slot, Special};
use crate::syntax::{Guard, Instruction, Operand};

/// An operand as PTX text.
pub(super) fn show(operand: &Operand<'_>) -> String {
    let mut out = String::new();
    write(operand, &mut out);
    out
}

/// Adds an operand as PTX text: every instruction of a module is written down when it is loaded.
fn write(operand: &Operand<'_>, out: &mut String) {
    let mut all = |pieces: &[&str]| pieces.iter().for_each(|piece| out.push_str(piece));
    match operand {
        Operand::Name(name) => all(&[name]),
        Operand::Not(name) => all(&["!", name]),
        Operand::Minus(name) => all(&["-", name]),
        Operand::Integer(value) => all(&[&value.to_string()]),
        Operand::Single(bits) => all(&[&format!("0f{bits:08X}")]),
        Operand::Double(bits) => all(&[&format!("0d{bits:016X}")]),
        Operand::Address { base, offset } => match (base, offset) {
            (Some(base), 0) => all(&["[", base, "]"]),
            (Some(base), offset) => all(&["[", base, "+", &offset.to_string(), "]"]),
            (None, offset) => all(&["[", &offset.to_string(), "]"]),
        },
        Operand::Vector(items) => {
            out.push('{');
            write_list(items, out);
            out.push('}');
        }
        Operand::Pair(first, second) => all(&[first, "|", second]),
        Operand::Sink => all(&["_"]),
    }
}

/// Adds operands with commas between them.
fn write_list(operands: &[Operand<'_>], out: &mut String) {
    for (at, operand) in operands.iter().enumerate() {
        if at != 0 {
            out.push_str(", ");
        }
        write(operand, out);
    }
}

/// The instruction as a line of PTX.
pub(super) fn text(instruction: &Instruction<'_>) -> String {
    let mut out = String::new();
    write_text(instruction, &mut out);
    out
}

pub(super) fn write_text(instruction: &Instruction<'_>, out: &mut String) {
    if let Some(Guard { predicate, negated }) = instruction.guard {
        out.push_str(if negated { "@!" } else { "@" });
        out.push_str(predicate);
        out.push(' ');
    }
    out.push_str(instruction.opcode);
    if !instruction.operands.is_empty() {
        out.push(' ');
        write_list(&instruction.operands, out);
    }
    out.push(';');
}

/// A special register by its name.
fn special(name: &str) -> Option<Special> {
    if let Some((register, axis)) = name.rsplit_once('.') {
        let axis = match axis {
            "x" => 0,
            "y" => 1,
            "z" => 2,
            _ => return None,
        };
        return Some(match register {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            "%clusterid" => Special::Cluster(axis),
            "%nclusterid" => Special::NumClusters(axis),
            "%cluster_ctaid" => Special::ClusterBlock(axis),
            "%cluster_nctaid" => Special::ClusterBlocks(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NumWarps,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NumSms,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::LaneMaskEq,
        "%lanemask_le" => Special::LaneMaskLe,
        "%lanemask_lt" => Special::LaneMaskLt,
        "%lanemask_ge" => Special::LaneMaskGe,
        "%lanemask_gt" => Special::LaneMaskGt,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%envreg1" => Special::Workspace { high: true },
        "%envreg2" => Special::Workspace { high: false },
        "%cluster_ctarank" => Special::ClusterRank,
        "%cluster_nctarank" => Special::ClusterRanks,
        _ => return None,
    })
}

impl<'t> Lowerer<'t> {
    /// Fails unless there are `count` operands.
    pub(super) fn count(&self, operands: &[Operand<'t>], count: usize) -> Lowered<()> {
        if operands.len() == count {
            return Ok(());
        }
        Err(format!("takes {count} operands, found {}", operands.len()))
    }

    /// A source of at most 32 bits.
    pub(super) fn narrow(&mut self, operand: &Operand<'t>) -> Lowered<Slot> {
        match operand {
            Operand::Integer(value) => self.constant(Constant::Word(*value as u32)),
            Operand::Single(bits) => self.constant(Constant::Word(*bits)),
            Operand::Double(bits) => {
                self.constant(Constant::Word((f64::from_bits(*bits) as f32).to_bits()))
            }
            Operand::Name(name) => match self.register(name) {
                Some((Kind::Narrow { .. }, row)) => Ok(row as Slot),
                Some((Kind::Wide, _)) => {
                    Err(format!("`{name}` has 64 bits where at most 32 are read"))
                }
                Some((Kind::Pred, _)) => {
                    Err(format!("`{name}` is a predicate where a value is read"))
                }
                None => self.named(name, 0, false),
            },
            Operand::Address {
                base: Some(name),
                offset,
            } if self.register(name).is_none() => self.named(name, *offset, false),
            other => Err(format!("`{}` is not a 32-bit value", show(other))),
        }
    }

    /// A source of 64 bits.
    pub(super) fn wide(&mut self, operand: &Operand<'t>) -> Lowered<Slot> {
        match operand {
            Operand::Integer(value) => self.constant(Constant::Double(*value as u64)),
            Operand::Double(bits) => self.constant(Constant::Double(*bits)),
            Operand::Single(bits) => {
                self.constant(Constant::Double(f64::from(f32::from_bits(*bits)).to_bits()))
            }
            Operand::Name(name) => match self.register(name) {
                Some((Kind::Wide, row)) => Ok(row as Slot),
                Some(_) => Err(format!("`{name}` does not have the 64 bits that are read")),
                None => self.named(name, 0, true),
            },
            Operand::Address {
                base: Some(name),
                offset,
            } if self.register(name).is_none() => self.named(name, *offset, true),
            other => Err(format!("`{}` is not a 64-bit value", show(other))),
        }
    }

    /// A source of 64 bits if `wide`, else of at most 32.
    pub(super) fn source(&mut self, operand: &Operand<'t>, wide: bool) -> Lowered<Slot> {
        if wide {
            self.wide(operand)
        } else {
            self.narrow(operand)
        }
    }

    /// A special register or the address of a variable.
    fn named(&mut self, name: &str, offset: i64, wide: bool) -> Lowered<Slot> {
        if name == "WARP_SZ" {
            return self.constant(if wide {
                Constant::Double(32)
            } else {
                Constant::Word(32)
            });
        }
        if let Some(register) = special(name) {
            if wide && register != Special::GridId {
                return Err(format!("`{name}` has 32 bits where 64 are read"));
            }
            if register == Special::GridId {
                return self.constant(if wide {
                    Constant::Double(1)
                } else {
                    Constant::Word(1)
                });
            }
            return self.constant(Constant::Special(register));
        }
        let place = match (self.variable(name), self.addresses.get(name)) {
            (Some(place), _) => place,
            (None, Some(&address)) if wide => return self.constant(Constant::Double(address)),
            _ => return Err(format!("no register or variable `{name}`")),
        };
        let address = match place {
            Place::Global(variable) if wide => {
                return self.constant(Constant::Global { variable, offset });
            }
            Place::Global(_) => return Err(format!("the address of `{name}` has 64 bits")),
            Place::Local(at) if self.callee.is_some() => {
                if !wide {
                    return Err(format!("the address of `{name}` has 64 bits"));
                }
                return self.frame_address(i64::from(at) + offset);
            }
            Place::Shared(at) | Place::Local(at) | Place::Param(at) => i64::from(at) + offset,
        };
        self.constant(if wide {
            Constant::Double(address as u64)
        } else {
            Constant::Word(address as u32)
        })
    }

    pub(super) fn is_wide(&self, operand: &Operand<'t>) -> bool {
        matches!(operand, Operand::Name(name) if matches!(self.register(name), Some((Kind::Wide, _))))
    }

    /// A source of an integer of at most 32 bits, which may be the low half of a 64-bit register.
    pub(super) fn low(&mut self, operand: &Operand<'t>) -> Lowered<Slot> {
        match operand {
            Operand::Name(name) => match self.register(name) {
                Some((Kind::Wide, row)) => Ok(row as Slot),
                _ => self.narrow(operand),
            },
            _ => self.narrow(operand),
        }
    }

    /// A destination of at most 32 bits.
    pub(super) fn narrow_out(&mut self, operand: &Operand<'t>) -> Lowered<Slot> {
        match operand {
            Operand::Sink => Ok(self.sink),
            Operand::Name(name) => match self.register(name) {
                Some((Kind::Narrow { .. }, row)) => Ok(row as Slot),
                _ => Err(format!("`{name}` is not a 32-bit register")),
            },
            other => Err(format!("`{}` is not a register", show(other))),
        }
    }

    /// A destination of 64 bits.
    pub(super) fn wide_out(&mut self, operand: &Operand<'t>) -> Lowered<Slot> {
        match operand {
            Operand::Sink => Ok(self.sink),
            Operand::Name(name) => match self.register(name) {
                Some((Kind::Wide, row)) => Ok(row as Slot),
                _ => Err(format!("`{name}` is not a 64-bit register")),
            },
            other => Err(format!("`{}` is not a register", show(other))),
        }
    }

    pub(super) fn out(&mut self, operand: &Operand<'t>, wide: bool) -> Lowered<Slot> {
        if wide {
            self.wide_out(operand)
        } else {
            self.narrow_out(operand)
        }
    }

    /// A predicate that is read, and whether it is negated.
    pub(super) fn predicate(&mut self, operand: &Operand<'t>) -> Lowered<(Pred, bool)> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            // `mov.pred %p, 1` and votes of a literal
            Operand::Integer(value) => return Ok((crate::ir::ALWAYS, *value == 0)),
            other => return Err(format!("`{}` is not a predicate", show(other))),
        };
        match self.register(name) {
            Some((Kind::Pred, index)) => Ok((index as Pred, negated)),
            _ => Err(format!("`{name}` is not a predicate")),
        }
    }

    /// A predicate that is written.
    pub(super) fn predicate_out(&mut self, operand: &Operand<'t>) -> Lowered<Pred> {
        match operand {
            Operand::Sink => Ok(self.sink_predicate()),
            Operand::Name(name) => match self.register(name) {
                Some((Kind::Pred, index)) => Ok(index as Pred),
                _ => Err(format!("`{name}` is not a predicate")),
            },
            other => Err(format!("`{}` is not a predicate", show(other))),
        }
    }

    /// A 32-bit destination with an optional predicate: `%r|%p`.
    pub(super) fn narrow_out_with_predicate(
        &mut self,
        operand: &Operand<'t>,
    ) -> Lowered<(Slot, Pred)> {
        match operand {
            Operand::Pair(register, predicate) => Ok((
                self.narrow_out(&if *register == "_" {
                    Operand::Sink
                } else {
                    Operand::Name(register)
                })?,
                self.predicate_out(&if *predicate == "_" {
                    Operand::Sink
                } else {
                    Operand::Name(predicate)
                })?,
            )),
            other => Ok((self.narrow_out(other)?, self.sink_predicate())),
        }
    }

    /// The register slots of a vector operand.
    pub(super) fn registers<const N: usize>(
        &mut self,
        operand: &Operand<'t>,
        write: bool,
    ) -> Lowered<[Slot; N]> {
        let items: &[Operand<'t>] = match operand {
            Operand::Vector(items) => items,
            single => std::slice::from_ref(single),
        };
        let mut out = [0; N];
        if items.len() != N {
            return Err(format!(
                "takes a vector of {N} registers, found {}",
                items.len()
            ));
        }
        for (slot, item) in out.iter_mut().zip(items) {
            *slot = if write {
                self.narrow_out(item)?
            } else {
                self.narrow(item)?
            };
        }
        Ok(out)
    }

    /// The place of a variable that an address names directly.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        if self.register(name).is_some() {
            None
        } else {
            self.variable(name)
        }
    }
}
