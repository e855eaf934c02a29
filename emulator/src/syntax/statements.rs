//! Function bodies: registers, labels, instructions and their operands.

use super::ast::{Guard, Instruction, Location, Operand, Statement};
use super::lexer::Kind;
use super::literals::{negated, number};
use super::parser::{Parser, Result};

impl<'t> Parser<'t> {
    /// Statements up to the `}` that ends the function.
    pub(super) fn body(&mut self) -> Result<Vec<Statement<'t>>> {
        let mut out = Vec::new();
        let mut depth = 0;
        loop {
            match self.peek() {
                None => return self.error("the text ends inside a function"),
                Some(Kind::Mark(b'{')) => {
                    self.at += 1;
                    depth += 1;
                    out.push(Statement::Open);
                }
                Some(Kind::Mark(b'}')) => {
                    self.at += 1;
                    if depth == 0 {
                        return Ok(out);
                    }
                    depth -= 1;
                    out.push(Statement::Close);
                }
                Some(Kind::Mark(b';')) => self.at += 1,
                _ => self.statement(&mut out)?,
            }
        }
    }

    fn statement(&mut self, out: &mut Vec<Statement<'t>>) -> Result<()> {
        match self.peek_word() {
            Some(".reg") => {
                self.at += 1;
                let mut kind = self.word()?;
                if matches!(kind, ".v2" | ".v4") {
                    return self.error("vector registers are not emulated");
                }
                kind = kind.trim_start_matches('.');
                loop {
                    let name = self.word()?;
                    let count = if self.accept(b'<') {
                        let count = self.unsigned()?;
                        self.expect(b'>')?;
                        count
                    } else {
                        0
                    };
                    out.push(Statement::Register { kind, name, count });
                    if !self.accept(b',') {
                        break;
                    }
                }
                self.expect(b';')
            }
            Some(".loc") => {
                self.at += 1;
                let file = self.unsigned()?;
                let line = self.unsigned()?;
                self.integer()?;
                // `, function_name $L, inlined_at 1 2 3`: the inlined line is the telling one
                while self.accept(b',') {
                    match self.word()? {
                        "function_name" => {
                            self.word()?;
                            if self.accept(b'+') {
                                self.integer()?;
                            }
                        }
                        "inlined_at" => {
                            self.integer()?;
                            self.integer()?;
                            self.integer()?;
                        }
                        other => return self.error(format!("`{other}` in .loc")),
                    }
                }
                // line 0 means "no line of its own": keep the one before
                if line > 0 {
                    out.push(Statement::Location(Location { file, line }));
                }
                Ok(())
            }
            Some(".pragma") => {
                self.skip_past(b';');
                Ok(())
            }
            Some(".local" | ".shared" | ".param" | ".global" | ".const") => {
                let variable = self.variable(false)?;
                out.push(Statement::Variable(variable));
                self.expect(b';')
            }
            _ => self.label_or_instruction(out),
        }
    }

    fn label_or_instruction(&mut self, out: &mut Vec<Statement<'t>>) -> Result<()> {
        let line = self.line();
        let guard = if self.accept(b'@') {
            let negated = self.accept(b'!');
            Some(Guard {
                predicate: self.word()?,
                negated,
            })
        } else {
            None
        };
        let word = self.word()?;
        if guard.is_none() && self.accept(b':') {
            if self.accept_word(".branchtargets") {
                let mut targets = vec![self.word()?];
                while self.accept(b',') {
                    targets.push(self.word()?);
                }
                out.push(Statement::BranchTargets {
                    name: word,
                    targets,
                });
                return self.expect(b';');
            }
            // what a call through a register may reach is seen when it gets there
            if matches!(self.peek_word(), Some(".callprototype" | ".calltargets")) {
                self.skip_past(b';');
                return Ok(());
            }
            out.push(Statement::Label(word));
            return Ok(());
        }
        let mut operands = Vec::new();
        if self.peek() != Some(Kind::Mark(b';')) {
            loop {
                operands.push(self.operand()?);
                if !self.accept(b',') {
                    break;
                }
            }
        }
        self.expect(b';')?;
        out.push(Statement::Instruction(Instruction {
            guard,
            opcode: word,
            operands,
            line,
        }));
        Ok(())
    }

    fn operand(&mut self) -> Result<Operand<'t>> {
        if self.accept(b'{') {
            let mut items = Vec::new();
            while !self.accept(b'}') {
                items.push(self.deeper(Self::operand)?);
                self.accept(b',');
            }
            return Ok(Operand::Vector(items));
        }
        if self.accept(b'[') {
            return self.address();
        }
        if self.accept(b'(') {
            let mut items = Vec::new();
            while !self.accept(b')') {
                items.push(self.deeper(Self::operand)?);
                self.accept(b',');
            }
            return Ok(Operand::Vector(items));
        }
        if self.accept(b'!') {
            return Ok(Operand::Not(self.word()?));
        }
        let negative = self.accept(b'-');
        let word = self.word()?;
        if word == "_" && self.peek() != Some(Kind::Mark(b'|')) {
            return Ok(Operand::Sink);
        }
        match number(word) {
            Some(value) if negative => return Ok(negated(value)),
            Some(value) => return Ok(value),
            None if negative => return Ok(Operand::Minus(word)),
            None => {}
        }
        if self.accept(b'|') {
            return Ok(Operand::Pair(word, self.word()?));
        }
        // `variable+8` as a plain operand is an address taken
        if self.peek() == Some(Kind::Mark(b'+')) {
            self.at += 1;
            let offset = self.integer()?;
            return Ok(Operand::Address {
                base: Some(word),
                offset,
            });
        }
        Ok(Operand::Name(word))
    }

    /// After `[`.
    fn address(&mut self) -> Result<Operand<'t>> {
        let address = match self.peek() {
            Some(Kind::Mark(b'-')) => Operand::Address {
                base: None,
                offset: self.integer()?,
            },
            Some(Kind::Word(word)) if number(word).is_some() => Operand::Address {
                base: None,
                offset: self.integer()?,
            },
            _ => {
                let base = self.word()?;
                let mut offset = 0;
                // a minus is part of the number
                if self.accept(b'+') || self.peek() == Some(Kind::Mark(b'-')) {
                    offset = self.integer()?;
                }
                Operand::Address {
                    base: Some(base),
                    offset,
                }
            }
        };
        if self.accept(b',') {
            // `[map, {x, y}]` of tensor copies
            let coordinates = self.deeper(Self::operand)?;
            self.expect(b']')?;
            return Ok(Operand::Vector(vec![address, coordinates]));
        }
        self.expect(b']')?;
        Ok(address)
    }
}
