//! The kernels of gradients with decays of channels where attention is not causal: parameters and table.

use super::gradient::{DTYPES, plain};
use super::params::{Decays, Rows, States};
use crate::abi::{Dtype, Entry, Unit, params};

/// What a launch of [`last_channels`] does, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastPass {
    /// Of spans: adds the exponents of their decays.
    Exponents,
    /// Over spans, from the last to the first: those of all behind each, and the decays of segments.
    Behind,
    /// Of spans: the keys that the last state has.
    Keys,
    /// Of spans: the gradients of keys from those of these, and their products with keys.
    Gradients,
    /// Over spans, in order: these products of all spans before each.
    Before,
    /// Of spans: the gradients of decays.
    Decays,
}

params! {
    /// Parameters of the kernels that multiply keys and their gradients by the decays behind each step, span by span,
    /// and add these products up to the gradients of decays.
    pub struct LastChannelsParams as "seqmix::linear_attention::LastChannelsParams" with [Rows, Decays] {
        /// `[batch, steps, heads_k, dk]`
        pub k: Rows,
        /// `[batch, steps, heads, dk]`, written: `k`, mapped, as the last state has it.
        pub faded: Rows,
        /// `[batch, steps, heads, dk]` in f32: what keys read of the last state's gradient; then their own gradients.
        pub dk: Rows,
        /// Decays of channels.
        pub decays: Decays,
        /// As `decays`, written.
        pub out: Decays,
        /// Address of `[span slot, head, dk]` in f32: exponents of the decays of a span; then of all behind it.
        pub exponents: u64,
        /// Address of `[span slot, head, dk]` in f32: products of keys and their gradients in a span; then of all before
        /// it. 0 for none.
        pub sums: u64,
        /// Address of `[slot, head, dk]` in f32: decays of segments as [`CarryParams`](super::CarryParams) has them, of
        /// which a sequence's first has all.
        pub passed: u64,
        /// Address of `[sequence, head, dk]` in f32: products of initial states with their gradients.
        pub products: u64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`Layer`](super::Layer).
        pub steps: i32,
        /// Heads of the output.
        pub heads: i32,
        /// `dk`
        pub channels: i32,
        /// As in [`Layer`](super::Layer).
        pub segment: i32,
        /// The number of the [`FeatureMap`](super::FeatureMap) of `k`.
        pub map: i32,
        /// The number of a [`LastPass`].
        pub pass: i32,
    }
}

params! {
    /// Parameters of the kernel that computes the gradients of initial states from those of the last ones.
    pub struct LastStatesParams as "seqmix::linear_attention::LastStatesParams" with [States] {
        /// Before each sequence, or none: zeros.
        pub initial: States,
        /// The same of the normaliser, without values.
        pub initial_z: States,
        /// As `initial`, written, or none.
        pub out: States,
        /// As `initial_z`, written, or none.
        pub out_z: States,
        /// Address of `[slot, head, dk, dv]` in f32: in a sequence's first slot, the gradient of its last state.
        pub gradients: u64,
        /// Address of `[slot, head, dk]` in f32, likewise of the normaliser; or 0.
        pub z_gradients: u64,
        /// Address of `[slot, head, dk]` in f32: in the first slot, the product of all decays.
        pub passed: u64,
        /// Address of `[sequence, head, dk]` in f32, written, or 0: products of initial states with their gradients.
        pub products: u64,
        /// Address of `[sequences + 1]` in i32, or 0.
        pub cu_seqlens: u64,
        /// As in [`Layer`](super::Layer).
        pub steps: i32,
        /// Heads of the output.
        pub heads: i32,
        /// `dk`
        pub channels: i32,
        /// `dv`
        pub values: i32,
        /// As in [`Layer`](super::Layer).
        pub segment: i32,
        /// Pads the struct.
        pub padding: i32,
    }
}

/// Channels of a head's keys that a block of [`last_states`] takes: one a warp.
pub const LAST_STATES_CHANNELS: usize = 8;

/// The kernel that multiplies keys and their gradients by the decays behind them, of this type.
pub fn last_channels(dtype: Dtype) -> Entry {
    let params = LastChannelsParams::PARAMS;
    plain("last_channels", "LastChannels", Some(dtype), params, 128)
}

/// The kernel of the gradients of initial states.
pub fn last_states() -> Entry {
    let threads = 32 * LAST_STATES_CHANNELS as u32;
    plain(
        "last_states",
        "LastStates",
        None,
        LastStatesParams::PARAMS,
        threads,
    )
}

pub(super) fn units() -> Vec<Unit> {
    let unit = |entry: Entry, header| Unit {
        name: entry.name.clone(),
        header,
        entries: vec![entry],
    };
    let mut units = vec![unit(last_states(), "linear_attention/last_states.cuh")];
    for dtype in DTYPES {
        let entry = last_channels(dtype);
        units.push(unit(entry, "linear_attention/last_channels.cuh"));
    }
    units
}
