//! The dotted words after a mnemonic, taken one by one in any order; one left over is an error.

use super::Lowered;
use crate::ir::Scalar;

/// An opcode split at its dots.
pub(crate) struct Modifiers<'t> {
    pub mnemonic: &'t str,
    opcode: &'t str,
    rest: Vec<&'t str>,
}

impl<'t> Modifiers<'t> {
    pub(crate) fn new(opcode: &'t str) -> Self {
        let mut parts = opcode.split('.');
        let mnemonic = parts.next().unwrap_or_default();
        Modifiers {
            mnemonic,
            opcode,
            rest: parts.collect(),
        }
    }

    /// Takes `word` if it is there.
    pub(crate) fn take(&mut self, word: &str) -> bool {
        match self.rest.iter().position(|&part| part == word) {
            Some(at) => {
                self.rest.remove(at);
                true
            }
            None => false,
        }
    }

    /// Takes the first of `words` that is there.
    pub(crate) fn take_any<'w>(&mut self, words: &[&'w str]) -> Option<&'w str> {
        words.iter().copied().find(|word| self.take(word))
    }

    /// Takes the last modifier: most opcodes end with their type.
    pub(crate) fn last(&mut self) -> Lowered<&'t str> {
        self.rest
            .pop()
            .ok_or_else(|| format!("the opcode `{}` lacks a type", self.opcode))
    }

    /// Takes the type at the end.
    pub(crate) fn scalar(&mut self) -> Lowered<Scalar> {
        let word = self.last()?;
        scalar(word).ok_or_else(|| {
            format!(
                "the type `.{word}` of the opcode `{}` is not emulated",
                self.opcode
            )
        })
    }

    /// Takes the first type that is there, counted from the front.
    pub(crate) fn first_scalar(&mut self) -> Lowered<Scalar> {
        let at = self.rest.iter().position(|part| scalar(part).is_some());
        let at = at.ok_or_else(|| format!("the opcode `{}` lacks a type", self.opcode))?;
        let word = self.rest.remove(at);
        scalar(word).ok_or_else(|| format!("`.{word}` is not a type"))
    }

    pub(crate) fn opcode(&self) -> &'t str {
        self.opcode
    }

    pub(crate) fn rest(&self) -> &[&'t str] {
        &self.rest
    }

    /// Fails if a modifier was not understood.
    pub(crate) fn finish(&self) -> Lowered<()> {
        match self.rest.first() {
            None => Ok(()),
            Some(word) => Err(format!(
                "the opcode `{}` is not emulated: unknown modifier `.{word}`",
                self.opcode
            )),
        }
    }
}

/// A type by its name; `.b` types are unsigned.
pub(crate) fn scalar(word: &str) -> Option<Scalar> {
    Some(match word {
        "u8" | "b8" => Scalar::U8,
        "s8" => Scalar::S8,
        "u16" | "b16" => Scalar::U16,
        "s16" => Scalar::S16,
        "u32" | "b32" => Scalar::U32,
        "s32" => Scalar::S32,
        "u64" | "b64" => Scalar::U64,
        "s64" => Scalar::S64,
        "f16" => Scalar::F16,
        "bf16" => Scalar::Bf16,
        "f16x2" => Scalar::F16x2,
        "bf16x2" => Scalar::Bf16x2,
        "tf32" => Scalar::Tf32,
        "f32" => Scalar::F32,
        "f64" => Scalar::F64,
        _ => return None,
    })
}
