//! The instruction table: a mnemonic and the function that lowers it, by chapter of the PTX ISA manual (9.7).
//!
//! What is not here is an error when a module is loaded.

use super::{
    Lowered, Lowerer, Modifiers, arithmetic, atomic, call, cluster, compare, control, convert,
    hopper, lanes, logic, matrix, memory, tensor_map, video, wgmma,
};
use crate::ir::{AtomicOp, CarryOp, Code, FloatOp, IntOp};
use crate::syntax::Operand;

/// Lowers one instruction from its modifiers and operands.
pub(super) type Lower =
    for<'t> fn(&mut Lowerer<'t>, &mut Modifiers<'_>, &[Operand<'t>]) -> Lowered<Code>;

/// The lowering of a mnemonic.
pub(super) fn find(mnemonic: &str) -> Option<Lower> {
    let lower: Lower = match mnemonic {
        // integer and floating-point arithmetic: 9.7.1 to 9.7.5
        "add" => |l, m, o| arithmetic::binary(l, m, o, IntOp::Add, FloatOp::Add),
        "sub" => |l, m, o| arithmetic::binary(l, m, o, IntOp::Sub, FloatOp::Sub),
        "mul" => arithmetic::multiply,
        "mad" => arithmetic::multiply_add,
        "fma" => arithmetic::fused,
        "div" => arithmetic::divide,
        "rem" => |l, m, o| arithmetic::signed(l, m, o, IntOp::RemS, IntOp::RemU),
        "abs" => |l, m, o| arithmetic::unary(l, m, o, Some(IntOp::Abs), FloatOp::Abs),
        "neg" => |l, m, o| arithmetic::unary(l, m, o, Some(IntOp::Neg), FloatOp::Neg),
        "min" => |l, m, o| {
            arithmetic::extreme(
                l,
                m,
                o,
                (IntOp::MinS, IntOp::MinU),
                (FloatOp::Min, FloatOp::MinNan),
            )
        },
        "max" => |l, m, o| {
            arithmetic::extreme(
                l,
                m,
                o,
                (IntOp::MaxS, IntOp::MaxU),
                (FloatOp::Max, FloatOp::MaxNan),
            )
        },
        "addc" => |l, m, o| lanes::add_with_carry(l, m, o, CarryOp::Add, true),
        "subc" => |l, m, o| lanes::add_with_carry(l, m, o, CarryOp::Sub, true),
        "madc" => |l, m, o| lanes::multiply_with_carry(l, m, o, true),
        "mul24" => |l, m, o| lanes::multiply_24(l, m, o, false),
        "mad24" => |l, m, o| lanes::multiply_24(l, m, o, true),
        "sad" => arithmetic::sad,
        "popc" | "clz" => logic::count_bits,
        "bfind" => logic::find_bit,
        "brev" => |l, m, o| logic::logic_one(l, m, o, IntOp::Brev),
        "bfe" => logic::extract,
        "bfi" => logic::insert,
        "fns" => lanes::fns,
        "szext" => lanes::szext,
        "bmsk" => lanes::bmsk,
        "dp4a" => logic::dp4a,
        "dp2a" => lanes::dp2a,
        "testp" => lanes::test_property,
        "rcp" => |l, m, o| arithmetic::unary(l, m, o, None, FloatOp::Rcp),
        "sqrt" => |l, m, o| arithmetic::unary(l, m, o, None, FloatOp::Sqrt),
        "rsqrt" => |l, m, o| arithmetic::unary(l, m, o, None, FloatOp::Rsqrt),
        "ex2" => |l, m, o| arithmetic::unary(l, m, o, None, FloatOp::Ex2),
        "lg2" => |l, m, o| arithmetic::unary(l, m, o, None, FloatOp::Lg2),
        "sin" => |l, m, o| arithmetic::unary(l, m, o, None, FloatOp::Sin),
        "cos" => |l, m, o| arithmetic::unary(l, m, o, None, FloatOp::Cos),
        "tanh" => |l, m, o| arithmetic::unary(l, m, o, None, FloatOp::Tanh),
        "copysign" => arithmetic::copysign,
        // comparison and selection: 9.7.6, 9.7.7
        "setp" => compare::set_predicate,
        "set" => compare::set_value,
        "selp" => compare::select,
        "slct" => compare::select_sign,
        // logic and shifts: 9.7.8
        "and" => |l, m, o| logic::logic(l, m, o, IntOp::And),
        "or" => |l, m, o| logic::logic(l, m, o, IntOp::Or),
        "xor" => |l, m, o| logic::logic(l, m, o, IntOp::Xor),
        "not" => |l, m, o| logic::logic_one(l, m, o, IntOp::Not),
        "cnot" => |l, m, o| logic::logic_one(l, m, o, IntOp::Cnot),
        "lop3" => logic::lop3,
        "shf" => logic::funnel_shift,
        "shl" => |l, m, o| logic::shift(l, m, o, (IntOp::Shl, IntOp::Shl)),
        "shr" => |l, m, o| logic::shift(l, m, o, (IntOp::ShrS, IntOp::ShrU)),
        "prmt" => logic::permute,
        // data movement and conversion: 9.7.9
        "mov" => convert::mov,
        "cvt" => convert::cvt,
        "cvta" => convert::cvta,
        "isspacep" => convert::is_space,
        "ld" | "ldu" => memory::load,
        "st" => memory::store,
        "cp" => memory::copy_async,
        "ldmatrix" => matrix::load_matrix,
        "stmatrix" => matrix::store_matrix,
        "movmatrix" => matrix::move_matrix,
        "prefetch" | "prefetchu" | "applypriority" | "discard" => control::hint,
        "createpolicy" => control::cache_policy,
        "shfl" => control::shuffle,
        // control flow: 9.7.12
        "bra" => control::branch,
        "brx" => control::branch_index,
        "call" => call::call,
        "ret" => call::ret,
        "exit" => control::exit,
        "trap" => control::trap,
        "nanosleep" | "griddepcontrol" | "pmevent" => control::hint,
        // synchronisation: 9.7.13
        "bar" | "barrier" => control::barrier,
        "membar" | "fence" => control::fence,
        "vote" => control::vote,
        "match" => control::matching,
        "activemask" => control::active_mask,
        "redux" => control::reduce,
        "atom" => |l, m, o| atomic::atomic(l, m, o, true),
        "red" => |l, m, o| atomic::atomic(l, m, o, false),
        // matrix multiply-add: 9.7.14
        "mma" => matrix::mma,
        "wgmma" => wgmma::wgmma,
        // video: 9.7.18
        "vadd" | "vsub" | "vabsdiff" | "vmin" | "vmax" | "vshl" | "vshr" | "vset" => video::scalar,
        "vmad" => video::multiply_add,
        "vadd2" | "vsub2" | "vavrg2" | "vabsdiff2" | "vmin2" | "vmax2" | "vset2" => video::parts,
        "vadd4" | "vsub4" | "vavrg4" | "vabsdiff4" | "vmin4" | "vmax4" | "vset4" => video::parts,
        "mbarrier" => hopper::mbarrier,
        "elect" => hopper::elect,
        "tensormap" => tensor_map::tensor_map,
        "mapa" => cluster::map,
        "getctarank" => cluster::rank,
        // registers of a warp: 9.7.19
        "setmaxnreg" => hopper::set_registers,
        _ => return None,
    };
    Some(lower)
}

/// The operation of `atom`, `red` and `redux` among the modifiers.
pub(super) fn atomic_op(modifiers: &mut Modifiers<'_>) -> Lowered<AtomicOp> {
    let words = [
        "add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas",
    ];
    Ok(match modifiers.take_any(&words) {
        Some("add") => AtomicOp::Add,
        Some("min") => AtomicOp::Min,
        Some("max") => AtomicOp::Max,
        Some("inc") => AtomicOp::Inc,
        Some("dec") => AtomicOp::Dec,
        Some("and") => AtomicOp::And,
        Some("or") => AtomicOp::Or,
        Some("xor") => AtomicOp::Xor,
        Some("exch") => AtomicOp::Exch,
        Some("cas") => AtomicOp::Cas,
        _ => {
            return Err(format!(
                "the opcode `{}` lacks an operation",
                modifiers.opcode()
            ));
        }
    })
}

/// Does an instruction reach the shared memory of its own block alone? `.shared` is `.shared::cta`; of mbarriers, others may
/// only arrive at them and announce bytes, by generic addresses too.
pub(super) fn is_near(opcode: &str) -> bool {
    let mut words = opcode.split('.');
    if words.clone().any(|word| word == "shared::cluster") {
        return false;
    }
    let tests = ["init", "inval", "test_wait", "try_wait"];
    (words.clone().next() == Some("mbarrier") && words.clone().any(|word| tests.contains(&word)))
        || words.any(|word| word == "shared" || word == "shared::cta")
}
