//! PTX text to syntax tree. Parses and judges nothing: what an opcode means is decided in `lower`.

mod ast;
mod declarations;
mod lexer;
mod literals;
mod parser;
mod statements;

pub(crate) use ast::{
    Ast, Function, Guard, Initial, Instruction, Location, Operand, Statement, Variable,
};
pub use parser::ParseError;
pub(crate) use parser::parse;
