//! Tests of the emulator's core: one instruction or one fault each, straight through the library, with no driver.
//!
//! - `../pass/*.ptx`: kernels that must give the values in the table at the top of their file ([`case`] has the format);
//! - `../fail/*.ptx`: kernels that must be refused, with the fault and the line that the file names;
//! - here: matrix multiplication, counters, launches and their limits, and mutants of a pipelined kernel.

#[path = "../support/ptxas.rs"]
mod assembler;
mod case;
mod counters;
mod emulator;
mod fail;
mod functions;
mod hopper;
mod launch;
mod matrix;
mod mutants;
mod pass;
mod races;
mod value;
