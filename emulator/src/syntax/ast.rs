//! The syntax tree of one PTX module. Names borrow from the text.

/// A whole module.
#[derive(Debug, Default)]
pub(crate) struct Ast<'t> {
    /// The architecture of `.target`, as `sm_90a`; empty without one.
    pub target: &'t str,
    /// `.file` entries: index and path.
    pub files: Vec<(u32, &'t str)>,
    /// Module-scope `.global`, `.const` and `.shared` variables.
    pub variables: Vec<Variable<'t>>,
    /// Functions with a body.
    pub functions: Vec<Function<'t>>,
}

/// `.entry` or `.func` with its body.
#[derive(Debug)]
pub(crate) struct Function<'t> {
    pub name: &'t str,
    pub entry: bool,
    /// What a `.func` gives back.
    pub returns: Vec<Variable<'t>>,
    pub parameters: Vec<Variable<'t>>,
    /// `.maxntid` or `.reqntid`: threads a block may have.
    pub max_threads: Option<u32>,
    /// `.maxnreg`: registers of a thread.
    pub registers: Option<u32>,
    /// `.reqnctapercluster`: blocks of a cluster.
    pub cluster: Option<[u32; 3]>,
    pub body: Vec<Statement<'t>>,
    pub line: u32,
}

/// A variable: a parameter, a global, a shared or a local array.
#[derive(Debug, Clone)]
pub(crate) struct Variable<'t> {
    pub name: &'t str,
    /// `global`, `const`, `shared`, `local` or `param`.
    pub space: &'t str,
    pub align: u32,
    /// Bytes; 0 for an `.extern` array without a size.
    pub size: u64,
    pub external: bool,
    /// Initial bytes; shorter than `size` means zeros behind.
    pub init: Vec<Initial<'t>>,
}

/// One piece of an initialiser.
#[derive(Debug, Clone)]
pub(crate) enum Initial<'t> {
    Bytes(Vec<u8>),
    /// The address of another variable plus an offset, as 8 bytes.
    Address(&'t str, i64),
}

/// A piece of a body, in order.
#[derive(Debug)]
pub(crate) enum Statement<'t> {
    Label(&'t str),
    Open,
    Close,
    /// `.reg .type name<count>`; `count` 0 is a single register.
    Register {
        kind: &'t str,
        name: &'t str,
        count: u32,
    },
    Variable(Variable<'t>),
    Location(Location),
    /// `name: .branchtargets a, b, c;`
    BranchTargets {
        name: &'t str,
        targets: Vec<&'t str>,
    },
    Instruction(Instruction<'t>),
}

/// `.loc`: a line of the CUDA source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Location {
    pub file: u32,
    pub line: u32,
}

/// `@p` or `@!p`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard<'t> {
    pub predicate: &'t str,
    pub negated: bool,
}

/// One instruction.
#[derive(Debug)]
pub(crate) struct Instruction<'t> {
    pub guard: Option<Guard<'t>>,
    /// The opcode with all its modifiers.
    pub opcode: &'t str,
    pub operands: Vec<Operand<'t>>,
    /// Line in the PTX text, from 1.
    pub line: u32,
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand<'t> {
    /// A register, a variable, a label or a special register.
    Name(&'t str),
    /// `!%p`
    Not(&'t str),
    /// `-%r`: of `vmad` only.
    Minus(&'t str),
    Integer(i64),
    /// Bits of a 0f literal.
    Single(u32),
    /// Bits of a 0d or decimal literal.
    Double(u64),
    /// `[base + offset]`; no base is an absolute address.
    Address {
        base: Option<&'t str>,
        offset: i64,
    },
    Vector(Vec<Operand<'t>>),
    /// `%r|%p`
    Pair(&'t str, &'t str),
    /// `_`
    Sink,
}
