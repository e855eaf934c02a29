//! Tokens to syntax tree.

use super::ast::{
    Ast, Function, Guard, Initial, Instruction, Location, Operand, Statement, Variable,
};
use super::lexer::{Kind, Token, tokens};

/// The text is not PTX that this parser reads.
#[derive(Debug, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct ParseError {
    /// Line from 1.
    pub line: u32,
    /// What was expected and what stood there.
    pub message: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Parses a whole module.
pub(crate) fn parse(text: &str) -> Result<Ast<'_>> {
    let mut parser = Parser {
        tokens: tokens(text),
        at: 0,
    };
    let mut ast = Ast::default();
    while parser.peek().is_some() {
        parser.module_item(&mut ast)?;
    }
    Ok(ast)
}

struct Parser<'t> {
    tokens: Vec<Token<'t>>,
    at: usize,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<Kind<'t>> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    fn line(&self) -> u32 {
        let last = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(last).map_or(1, |token| token.line)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(ParseError {
            line: self.line(),
            message: message.into(),
        })
    }

    fn found(&self) -> String {
        match self.peek() {
            Some(Kind::Word(word)) => format!("`{word}`"),
            Some(Kind::Text(text)) => format!("\"{text}\""),
            Some(Kind::Mark(mark)) => format!("`{}`", mark as char),
            None => "the end of the text".into(),
        }
    }

    fn word(&mut self) -> Result<&'t str> {
        match self.peek() {
            Some(Kind::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.error(format!("expected a word, found {}", self.found())),
        }
    }

    fn peek_word(&self) -> Option<&'t str> {
        match self.peek() {
            Some(Kind::Word(word)) => Some(word),
            _ => None,
        }
    }

    fn accept(&mut self, mark: u8) -> bool {
        let hit = self.peek() == Some(Kind::Mark(mark));
        self.at += usize::from(hit);
        hit
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let hit = self.peek_word() == Some(word);
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, mark: u8) -> Result<()> {
        if self.accept(mark) {
            return Ok(());
        }
        self.error(format!(
            "expected `{}`, found {}",
            mark as char,
            self.found()
        ))
    }

    fn integer(&mut self) -> Result<i64> {
        let negative = self.accept(b'-');
        let word = self.word()?;
        match number(word) {
            Some(Operand::Integer(value)) => Ok(if negative {
                value.wrapping_neg()
            } else {
                value
            }),
            _ => self.error(format!("expected an integer, found `{word}`")),
        }
    }

    fn unsigned(&mut self) -> Result<u32> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.error(format!("{value} is out of range")))
    }

    fn skip_past(&mut self, mark: u8) {
        while self.peek().is_some() && !self.accept(mark) {
            self.at += 1;
        }
    }

    fn module_item(&mut self, ast: &mut Ast<'t>) -> Result<()> {
        match self.word()? {
            ".version" => {
                self.word()?;
            }
            ".target" => {
                self.word()?;
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
        if self.accept(b'(') {
            self.skip_past(b')');
        }
        let name = self.word()?;
        let mut parameters = Vec::new();
        if self.accept(b'(') {
            while !self.accept(b')') {
                parameters.push(self.variable(false)?);
                self.accept(b',');
            }
        }
        let mut max_threads = None;
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
            parameters,
            max_threads,
            cluster,
            body,
            line,
        }))
    }

    /// `.space .align n .type name[count] = {…}` without the semicolon.
    fn variable(&mut self, external: bool) -> Result<Variable<'t>> {
        let space = self.word()?.trim_start_matches('.');
        let mut align = None;
        let mut lanes = 1;
        let mut kind = None;
        let name = loop {
            match self.word()? {
                ".align" => align = Some(self.unsigned()?),
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                // `.param .u64 .ptr .global .align 8 name` says where a pointer leads
                ".ptr" | ".global" | ".const" | ".shared" | ".local" | ".attribute" => {}
                word if word.starts_with('.') => kind = Some(word),
                word => break word,
            }
        };
        let Some(element) = kind.and_then(bytes_of) else {
            return self.error(format!("variable `{name}` has no type of known size"));
        };
        let mut count = 1;
        while self.accept(b'[') {
            let length = if self.accept(b']') {
                0
            } else {
                let length = self.integer()?;
                self.expect(b']')?;
                length
            };
            count *= u64::try_from(length).or_else(|_| self.error("a negative array length"))?;
        }
        let mut init = Vec::new();
        if self.accept(b'=') {
            self.initialiser(element, &mut init)?;
        }
        let natural = element * lanes;
        Ok(Variable {
            name,
            space,
            align: align.unwrap_or(natural),
            size: u64::from(natural) * count,
            external,
            init,
        })
    }

    fn initialiser(&mut self, element: u32, out: &mut Vec<Initial<'t>>) -> Result<()> {
        if self.accept(b'{') {
            while !self.accept(b'}') {
                self.initialiser(element, out)?;
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

    /// Statements up to the `}` that ends the function.
    fn body(&mut self) -> Result<Vec<Statement<'t>>> {
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
                items.push(self.operand()?);
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
                items.push(self.operand()?);
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
            None if negative => {
                return self.error(format!("expected a number after `-`, found `{word}`"));
            }
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
            let coordinates = self.operand()?;
            self.expect(b']')?;
            return Ok(Operand::Vector(vec![address, coordinates]));
        }
        self.expect(b']')?;
        Ok(address)
    }
}

/// Bytes of a scalar type such as `.b32`.
fn bytes_of(kind: &str) -> Option<u32> {
    match kind.trim_start_matches(['.', 'b', 'u', 's', 'f']) {
        "8" => Some(1),
        "16" => Some(2),
        "32" => Some(4),
        "64" => Some(8),
        "128" => Some(16),
        _ => None,
    }
}

/// A literal after a minus sign.
fn negated(value: Operand<'_>) -> Operand<'_> {
    match value {
        Operand::Integer(value) => Operand::Integer(value.wrapping_neg()),
        Operand::Single(bits) => Operand::Single(bits ^ 1 << 31),
        Operand::Double(bits) => Operand::Double(bits ^ 1 << 63),
        other => other,
    }
}

/// A literal, or `None` for a name.
fn number<'t>(word: &str) -> Option<Operand<'t>> {
    let first = word.bytes().next()?;
    if !first.is_ascii_digit() {
        return None;
    }
    if let Some(hex) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
        return u32::from_str_radix(hex, 16).ok().map(Operand::Single);
    }
    if let Some(hex) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
        return u64::from_str_radix(hex, 16).ok().map(Operand::Double);
    }
    let plain = word.trim_end_matches('U');
    if let Some(hex) = plain
        .strip_prefix("0x")
        .or_else(|| plain.strip_prefix("0X"))
    {
        return u64::from_str_radix(hex, 16)
            .ok()
            .map(|value| Operand::Integer(value as i64));
    }
    if let Some(binary) = plain.strip_prefix("0b") {
        return u64::from_str_radix(binary, 2)
            .ok()
            .map(|value| Operand::Integer(value as i64));
    }
    if plain.len() > 1 && plain.starts_with('0') && plain.bytes().all(|byte| byte.is_ascii_digit())
    {
        return u64::from_str_radix(plain, 8)
            .ok()
            .map(|value| Operand::Integer(value as i64));
    }
    if let Ok(value) = plain.parse::<u64>() {
        return Some(Operand::Integer(value as i64));
    }
    // a decimal has double precision until its use
    plain
        .parse::<f64>()
        .ok()
        .map(|value| Operand::Double(value.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_with_scopes_vectors_pairs_and_guards() {
        let text = r#"
.version 9.0
.target sm_80, debug
.address_size 64
.extern .shared .align 16 .b8 dyn[];
.const .align 4 .b8 table[8] = {0, 0, 128, 63};
.visible .entry k(.param .align 8 .b8 k_0[40], .param .u64 .ptr .global .align 8 k_1)
.maxntid 64, 2, 1
.minnctapersm 2
{
  .reg .b32 %r<9>;
  .loc 1 8 0
  { .reg .pred p; @!p bra.uni L; }
L:
  ld.global.v2.u32 {%r1, %r2}, [%r3+-8];
  shfl.sync.bfly.b32 %r4|%r5, %r6, 0x10, -1, _;
  mov.f32 %r1, 0f3F800000;
  ret;
}"#;
        let ast = parse(text).unwrap();
        assert!(ast.variables[0].external);
        assert_eq!(ast.variables[1].size, 8);
        let function = &ast.functions[0];
        assert_eq!(function.max_threads, Some(128));
        assert_eq!(
            function
                .parameters
                .iter()
                .map(|p| p.size)
                .collect::<Vec<_>>(),
            [40, 8]
        );
        let instructions: Vec<_> = function
            .body
            .iter()
            .filter_map(|statement| match statement {
                Statement::Instruction(instruction) => Some(instruction),
                _ => None,
            })
            .collect();
        assert!(instructions[0].guard.unwrap().negated);
        assert_eq!(
            instructions[1].operands[1],
            Operand::Address {
                base: Some("%r3"),
                offset: -8
            }
        );
        assert_eq!(instructions[2].operands[0], Operand::Pair("%r4", "%r5"));
        assert_eq!(instructions[2].operands[3], Operand::Integer(-1));
        assert_eq!(instructions[3].operands[1], Operand::Single(0x3F80_0000));
    }

    #[test]
    fn an_error_names_its_line() {
        let error = parse(".version 9.0\n.entry k() {\n mov.u32 %r1\n}").unwrap_err();
        assert_eq!(error.line, 4);
        assert!(error.message.contains("expected `;`"), "{error}");
    }
}
