//! Module scope: directives, functions, variables and their initial values.

use super::ast::{Ast, Function, Initial, Operand, Variable};
use super::lexer::Kind;
use super::literals::{bytes_of, negated, number};
use super::parser::{Parser, Result};

impl<'t> Parser<'t> {
    pub(super) fn module_item(&mut self, ast: &mut Ast<'t>) -> Result<()> {
        match self.word()? {
            ".version" => {
                self.word()?;
            }
            ".target" => {
                ast.target = self.word()?;
                while self.accept(b',') {
                    self.word()?;
                }
            }
            ".address_size" => {
                let bits = self.integer()?;
                if bits != 64 {
                    return self.error(format!("addresses of {bits} bits; only 64 are emulated"));
                }
            }
            ".file" => {
                let index = self.unsigned()?;
                let Some(Kind::Text(path)) = self.peek() else {
                    return self.error(format!("expected a path, found {}", self.found()));
                };
                self.at += 1;
                while self.accept(b',') {
                    self.integer()?;
                }
                ast.files.push((index, path));
            }
            // debug sections (.section .debug_str { … }) carry nothing that runs
            ".section" => {
                self.word()?;
                self.expect(b'{')?;
                self.skip_past(b'}');
            }
            ".pragma" => self.skip_past(b';'),
            first => {
                self.at -= 1;
                return self.declaration(ast, first);
            }
        }
        Ok(())
    }

    /// A variable or a function, with its linkage words.
    fn declaration(&mut self, ast: &mut Ast<'t>, first: &str) -> Result<()> {
        let mut external = false;
        loop {
            match self.peek_word() {
                Some(".extern") => external = true,
                Some(".visible" | ".weak" | ".common") => {}
                Some(".entry" | ".func") => {
                    if let Some(function) = self.function()? {
                        ast.functions.push(function);
                    }
                    return Ok(());
                }
                Some(".global" | ".const" | ".shared") => {
                    let variable = self.variable(external)?;
                    self.expect(b';')?;
                    ast.variables.push(variable);
                    return Ok(());
                }
                Some(".alias") => {
                    self.skip_past(b';');
                    return Ok(());
                }
                _ => return self.error(format!("`{first}` is not a directive this parser knows")),
            }
            self.at += 1;
        }
    }

    /// `None` for a declaration without a body.
    fn function(&mut self) -> Result<Option<Function<'t>>> {
        let line = self.line();
        let entry = self.word()? == ".entry";
        let returns = self.parameters()?;
        let name = self.word()?;
        let parameters = self.parameters()?;
        let mut max_threads = None;
        let mut registers = None;
        let mut cluster = None;
        loop {
            match self.peek() {
                Some(Kind::Mark(b';')) => {
                    self.at += 1;
                    return Ok(None);
                }
                Some(Kind::Mark(b'{')) => break,
                Some(Kind::Word(".maxntid" | ".reqntid")) => {
                    self.at += 1;
                    let mut threads = self.unsigned()?;
                    while self.accept(b',') {
                        threads = threads.saturating_mul(self.unsigned()?);
                    }
                    max_threads = Some(threads);
                }
                Some(Kind::Word(".maxnreg")) => {
                    self.at += 1;
                    registers = Some(self.unsigned()?);
                }
                Some(Kind::Word(".reqnctapercluster")) => {
                    self.at += 1;
                    let mut blocks = [self.unsigned()?, 1, 1];
                    for side in &mut blocks[1..] {
                        if self.accept(b',') {
                            *side = self.unsigned()?;
                        }
                    }
                    cluster = Some(blocks);
                }
                Some(Kind::Word(word)) if word.starts_with('.') => {
                    self.at += 1;
                    // .minnctapersm 2, .explicitcluster, .maxclusterrank 8, .noreturn
                    while self.peek_word().is_some_and(|next| !next.starts_with('.'))
                        || self.accept(b',')
                    {
                        if self.peek_word().is_some_and(|next| !next.starts_with('.')) {
                            self.at += 1;
                        }
                    }
                }
                _ => {
                    return self.error(format!("expected a function body, found {}", self.found()));
                }
            }
        }
        self.expect(b'{')?;
        let body = self.body()?;
        Ok(Some(Function {
            name,
            entry,
            returns,
            parameters,
            max_threads,
            registers,
            cluster,
            body,
            line,
        }))
    }

    /// A list of variables in parentheses, or none.
    fn parameters(&mut self) -> Result<Vec<Variable<'t>>> {
        let mut out = Vec::new();
        if self.accept(b'(') {
            while !self.accept(b')') {
                out.push(self.variable(false)?);
                self.accept(b',');
            }
        }
        Ok(out)
    }

    /// `.space .align n .type name[count] = {…}` without the semicolon.
    pub(super) fn variable(&mut self, external: bool) -> Result<Variable<'t>> {
        let space = self.word()?.trim_start_matches('.');
        let mut align = None;
        let mut points = false;
        let mut lanes = 1;
        let mut kind = None;
        let name = loop {
            match self.word()? {
                // `.param .u64 .ptr .global .align 8 name` says where a pointer leads, and how that is aligned
                ".align" if points => drop(self.unsigned()?),
                ".align" => align = Some(self.unsigned()?),
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                ".ptr" => points = true,
                ".global" | ".const" | ".shared" | ".local" | ".attribute" => {}
                word if word.starts_with('.') => kind = Some(word),
                word => break word,
            }
        };
        let Some(element) = kind.and_then(bytes_of) else {
            let kind = kind.unwrap_or("no type");
            return self.error(format!("variable `{name}` of {kind} is not emulated"));
        };
        let mut count = 1u64;
        while self.accept(b'[') {
            let length = if self.accept(b']') {
                0
            } else {
                let length = self.integer()?;
                self.expect(b']')?;
                length
            };
            let length =
                u64::try_from(length).or_else(|_| self.error("a negative array length"))?;
            let product = count.checked_mul(length);
            count = product.map_or_else(|| self.error("an array that is too long"), Ok)?;
        }
        let mut init = Vec::new();
        if self.accept(b'=') {
            self.initialiser(element, &mut init)?;
        }
        let natural = element * lanes;
        // what a block or a thread has of its own is small on every device
        let most = match space {
            "global" | "const" => 1 << 40,
            _ => 1 << 24,
        };
        let size = u64::from(natural).saturating_mul(count);
        if size > most {
            return self.error(format!(
                "`{name}` has {size} bytes; at most {most} are emulated"
            ));
        }
        let align = align.unwrap_or(natural);
        if !align.is_power_of_two() || align > 1 << 20 {
            return self.error(format!("`{name}` is aligned to {align}"));
        }
        Ok(Variable {
            name,
            space,
            align,
            size,
            external,
            init,
        })
    }

    fn initialiser(&mut self, element: u32, out: &mut Vec<Initial<'t>>) -> Result<()> {
        if self.accept(b'{') {
            while !self.accept(b'}') {
                self.deeper(|parser| parser.initialiser(element, out))?;
                self.accept(b',');
            }
            return Ok(());
        }
        let negative = self.accept(b'-');
        let word = self.word()?;
        let value = number(word).map(|value| if negative { negated(value) } else { value });
        let bits = match value {
            Some(Operand::Integer(value)) => value as u64,
            Some(Operand::Single(bits)) if element == 8 => {
                f64::from(f32::from_bits(bits)).to_bits()
            }
            Some(Operand::Single(bits)) => u64::from(bits),
            Some(Operand::Double(bits)) if element == 4 => {
                u64::from((f64::from_bits(bits) as f32).to_bits())
            }
            Some(Operand::Double(bits)) => bits,
            _ => {
                let name = if word == "generic" && self.accept(b'(') {
                    let name = self.word()?;
                    self.expect(b')')?;
                    name
                } else {
                    word
                };
                let offset = if self.accept(b'+') {
                    self.integer()?
                } else {
                    0
                };
                out.push(Initial::Address(name, offset));
                return Ok(());
            }
        };
        out.push(Initial::Bytes(
            bits.to_le_bytes()[..element as usize].to_vec(),
        ));
        Ok(())
    }
}
