//! The integration tests, in one binary: every op through its public API, on a GPU if one works, else on the
//! emulator. `SEQMIX_DRIVER=cuda` or `SEQMIX_DRIVER=emulator` chooses.

#[path = "../../examples/shared/device.rs"]
mod device;
#[path = "../../examples/shared/golden.rs"]
mod golden;
#[path = "../../examples/shared/measure.rs"]
mod measure;
#[path = "../../examples/shared/naive.rs"]
mod naive;

mod abi;
mod attention;
mod bare;
mod causal_conv1d;
mod delta_rule;
mod errors;
mod gated_attention_unit;
mod gemm;
mod golden_cases;
mod golden_references;
mod linear_attention;
mod lru;
mod planted;
mod rwkv4;
mod rwkv7;
mod selective_scan;
mod ssd;
mod support;
