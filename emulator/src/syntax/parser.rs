//! The walk over tokens that all of the parser shares, and the errors that name a line.

use super::ast::{Ast, Operand};
use super::lexer::{Kind, Token, tokens};
use super::literals::number;

/// The text is not PTX that this parser reads.
#[derive(Debug, thiserror::Error)]
#[error("PTX line {line}: {message}")]
pub struct ParseError {
    /// Line from 1.
    pub line: u32,
    /// What was expected and what stood there.
    pub message: String,
}

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// Parses a whole module.
pub(crate) fn parse(text: &str) -> Result<Ast<'_>> {
    let mut parser = Parser {
        tokens: tokens(text),
        at: 0,
        depth: 0,
    };
    let mut ast = Ast::default();
    while parser.peek().is_some() {
        parser.module_item(&mut ast)?;
    }
    Ok(ast)
}

/// Where the parser stands.
pub(super) struct Parser<'t> {
    tokens: Vec<Token<'t>>,
    pub(super) at: usize,
    /// Open braces, parentheses and brackets of the operand at hand.
    pub(super) depth: u32,
}

impl<'t> Parser<'t> {
    pub(super) fn peek(&self) -> Option<Kind<'t>> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    pub(super) fn line(&self) -> u32 {
        let last = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(last).map_or(1, |token| token.line)
    }

    pub(super) fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(ParseError {
            line: self.line(),
            message: message.into(),
        })
    }

    pub(super) fn found(&self) -> String {
        match self.peek() {
            Some(Kind::Word(word)) => format!("`{word}`"),
            Some(Kind::Text(text)) => format!("\"{text}\""),
            Some(Kind::Mark(mark)) => format!("`{}`", mark as char),
            None => "the end of the text".into(),
        }
    }

    pub(super) fn word(&mut self) -> Result<&'t str> {
        match self.peek() {
            Some(Kind::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.error(format!("expected a word, found {}", self.found())),
        }
    }

    pub(super) fn peek_word(&self) -> Option<&'t str> {
        match self.peek() {
            Some(Kind::Word(word)) => Some(word),
            _ => None,
        }
    }

    pub(super) fn accept(&mut self, mark: u8) -> bool {
        let hit = self.peek() == Some(Kind::Mark(mark));
        self.at += usize::from(hit);
        hit
    }

    pub(super) fn accept_word(&mut self, word: &str) -> bool {
        let hit = self.peek_word() == Some(word);
        self.at += usize::from(hit);
        hit
    }

    pub(super) fn expect(&mut self, mark: u8) -> Result<()> {
        if self.accept(mark) {
            return Ok(());
        }
        self.error(format!(
            "expected `{}`, found {}",
            mark as char,
            self.found()
        ))
    }

    pub(super) fn integer(&mut self) -> Result<i64> {
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

    pub(super) fn unsigned(&mut self) -> Result<u32> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.error(format!("{value} is out of range")))
    }

    /// Runs `f` a level deeper; levels end long before the host's stack does.
    pub(super) fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        const DEEPEST: u32 = 64;
        if self.depth >= DEEPEST {
            return self.error(format!("more than {DEEPEST} levels of brackets"));
        }
        self.depth += 1;
        let out = f(self);
        self.depth -= 1;
        out
    }

    pub(super) fn skip_past(&mut self, mark: u8) {
        while self.peek().is_some() && !self.accept(mark) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ast::Statement;
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
