//! Programs and modules: PTX parsed and lowered once, and its global variables placed in a device's memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use crate::image::MachineCode;
use crate::ir::{Body, Constant};
use crate::lower::{self, Functions, LowerError, Place};
use crate::memory::{Memory, MemoryError};
use crate::syntax::{self, Initial, ParseError, Variable};

/// Why a module cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The text is not PTX.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// An instruction that is not emulated, or does not fit its operands.
    #[error("{kernel}, PTX line {line}: {message}")]
    Lower {
        /// The function it stands in.
        kernel: String,
        /// Line from 1.
        line: u32,
        /// What is wrong.
        message: String,
    },
    /// A variable that cannot be placed.
    #[error("variable {name}: {message}")]
    Variable {
        /// The variable.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// No room for the global variables.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A parameter of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name in the PTX.
    pub name: String,
    /// Offset in the parameter buffer in bytes.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// A kernel of a program.
#[derive(Debug)]
pub struct Kernel {
    /// The name of its entry.
    pub name: String,
    /// Its parameters in order.
    pub params: Vec<Param>,
    /// Bytes of statically declared shared memory.
    pub static_shared: u32,
    /// Bytes of local memory a thread, with the frames of the functions it calls.
    pub local_bytes: u32,
    /// Bytes of local memory of the entry alone.
    pub(crate) frame_bytes: u32,
    /// `.maxntid` or `.reqntid`: the most threads a block may have.
    pub max_threads: Option<u32>,
    /// `.maxnreg`: the registers of a thread when it starts.
    pub(crate) registers: Option<u32>,
    /// `.reqnctapercluster`: the blocks of a cluster along x, y and z.
    pub cluster: Option<[u32; 3]>,
    pub(crate) body: Body,
}

impl Kernel {
    /// Bytes of all parameters.
    pub fn param_bytes(&self) -> u32 {
        self.params.last().map_or(0, |last| last.offset + last.size)
    }
}

/// The number of a target such as `sm_90a`.
fn architecture(target: &str) -> Option<u32> {
    let number = target.strip_prefix("sm_")?;
    number.trim_end_matches(['a', 'f']).parse().ok()
}

/// An owned global variable.
#[derive(Debug)]
struct Global {
    name: String,
    size: u64,
    /// The initial values; zeros follow.
    bytes: Vec<u8>,
    /// Offset of an address in the bytes, the variable it names, and what is added.
    addresses: Vec<(usize, u32, i64)>,
}

/// A parsed and lowered PTX text.
#[derive(Debug)]
pub struct Program {
    kernels: Vec<Kernel>,
    names: HashMap<String, usize>,
    globals: Vec<Global>,
    files: HashMap<u32, String>,
    /// What its image has beside the text.
    code: Option<MachineCode>,
    /// Read from the machine code when first asked for: many images are loaded for the few that are launched.
    registers: OnceLock<BTreeMap<String, u32>>,
    arch: Option<u32>,
}

impl Program {
    /// Parses and lowers `text`. Every opcode is checked here: one that is not emulated is an error that names it.
    pub fn parse(text: &str) -> Result<Program, LoadError> {
        let ast = syntax::parse(text)?;
        let mut places = HashMap::new();
        let mut shared = Vec::new();
        let mut variables = Vec::new();
        for variable in &ast.variables {
            if variable.space == "shared" {
                shared.push(variable.clone());
            } else {
                places.insert(variable.name, Place::Global(variables.len() as u32));
                variables.push(variable);
            }
        }
        let functions = Functions::new(&ast);
        let globals = variables
            .iter()
            .map(|variable| global(variable, &places, &functions))
            .collect::<Result<Vec<_>, _>>()?;
        let mut kernels = Vec::new();
        for function in ast.functions.iter().filter(|function| function.entry) {
            let lowered = lower::lower(function, &functions, &places, &shared).map_err(
                |LowerError { line, message }| LoadError::Lower {
                    kernel: function.name.into(),
                    line,
                    message,
                },
            )?;
            let params = lowered.parameters.into_iter();
            kernels.push(Kernel {
                name: function.name.into(),
                params: params
                    .map(|(name, offset, size, align)| Param {
                        name,
                        offset,
                        size,
                        align,
                    })
                    .collect(),
                static_shared: lowered.static_shared,
                local_bytes: lowered.local_bytes,
                frame_bytes: lowered.frame_bytes,
                max_threads: function.max_threads,
                registers: function.registers,
                cluster: function.cluster,
                body: lowered.body,
            });
        }
        let names = kernels
            .iter()
            .enumerate()
            .map(|(index, kernel)| (kernel.name.clone(), index))
            .collect();
        let files = ast
            .files
            .iter()
            .map(|&(index, path)| (index, path.to_string()))
            .collect();
        Ok(Program {
            kernels,
            names,
            globals,
            files,
            code: None,
            registers: OnceLock::new(),
            arch: architecture(ast.target),
        })
    }

    /// The architecture that the text was compiled for, as 80, if its target names one.
    pub fn arch(&self) -> Option<u32> {
        self.arch
    }

    /// The same with the machine code that its image has for a device.
    pub(crate) fn with_machine_code(self, code: Option<MachineCode>) -> Program {
        Program { code, ..self }
    }

    /// The 32-bit registers that ptxas gave a thread of a kernel; `None` without machine code, for PTX does not tell.
    pub fn registers(&self, kernel: &str) -> Option<u32> {
        let code = self.code.as_ref()?;
        let registers = self.registers.get_or_init(|| code.registers());
        registers.get(kernel).copied()
    }

    /// A kernel by name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.names.get(name).map(|&index| &self.kernels[index])
    }

    /// All kernels in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }

    /// The path of a `.file` entry.
    pub(crate) fn file(&self, index: u32) -> Option<&str> {
        self.files.get(&index).map(String::as_str)
    }
}

fn global(
    variable: &Variable<'_>,
    places: &HashMap<&str, Place>,
    functions: &Functions<'_, '_>,
) -> Result<Global, LoadError> {
    let error = |message: String| LoadError::Variable {
        name: variable.name.into(),
        message,
    };
    if variable.external {
        return Err(error("is external: modules are not linked".into()));
    }
    let mut bytes = Vec::new();
    let mut addresses = Vec::new();
    for piece in &variable.init {
        match piece {
            Initial::Bytes(piece) => bytes.extend_from_slice(piece),
            Initial::Address(name, offset) => match places.get(name) {
                Some(Place::Global(index)) => {
                    addresses.push((bytes.len(), *index, *offset));
                    bytes.extend_from_slice(&[0; 8]);
                }
                None if functions.addresses.contains_key(name) => {
                    bytes.extend_from_slice(&functions.addresses[name].to_le_bytes());
                }
                _ => {
                    return Err(error(format!(
                        "is initialised with the address of `{name}`, which is no global variable"
                    )));
                }
            },
        }
    }
    if bytes.len() as u64 > variable.size {
        return Err(error(format!(
            "has {} initial bytes for a size of {}",
            bytes.len(),
            variable.size
        )));
    }
    Ok(Global {
        name: variable.name.into(),
        size: variable.size,
        bytes,
        addresses,
    })
}

/// A program whose global variables lie in a memory.
#[derive(Debug)]
pub struct Module {
    program: Arc<Program>,
    globals: Vec<u64>,
}

impl Module {
    /// Places the global variables and sets them to their initial values.
    pub fn load(program: Arc<Program>, memory: &Memory) -> Result<Module, LoadError> {
        let mut module = Module {
            program,
            globals: Vec::new(),
        };
        for index in 0..module.program.globals.len() {
            let size = module.program.globals[index].size.max(1);
            match memory.alloc(size) {
                Ok(address) => module.globals.push(address),
                Err(error) => {
                    module.unload(memory);
                    return Err(error.into());
                }
            }
        }
        for (global, &address) in module.program.globals.iter().zip(&module.globals) {
            let mut bytes = global.bytes.clone();
            for &(at, variable, offset) in &global.addresses {
                let value = module.globals[variable as usize].wrapping_add_signed(offset);
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            memory.write(address, &bytes)?;
            // zeros in pieces, so that the host needs no copy of a large variable
            let zeros = [0; 1 << 16];
            let mut at = bytes.len() as u64;
            while at < global.size {
                let count = (global.size - at).min(zeros.len() as u64);
                memory.write(address + at, &zeros[..count as usize])?;
                at += count;
            }
        }
        Ok(module)
    }

    /// Gives the memory of the global variables back.
    pub fn unload(&self, memory: &Memory) {
        for &address in &self.globals {
            // an address that is already free was freed by the program under test: nothing is left to give back
            let _ = memory.free(address);
        }
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// Address and bytes of a global variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        let index = self
            .program
            .globals
            .iter()
            .position(|global| global.name == name)?;
        Some((self.globals[index], self.program.globals[index].size))
    }

    /// The value of a constant that depends on the module.
    pub(crate) fn address(&self, constant: Constant) -> Option<u64> {
        match constant {
            Constant::Global { variable, offset } => self
                .globals
                .get(variable as usize)
                .map(|address| address.wrapping_add_signed(offset)),
            _ => None,
        }
    }
}
