//! What the kernels of the gated attention unit are given: the structs of `kernels/gated_attention_unit/params.h`.

use super::super::params;

params! {
    /// A tensor with a row for each step. Strides count elements.
    pub struct Rows as "seqmix::gated_attention_unit::Rows" {
        /// Its address; 0: there is none.
        pub at: u64,
        /// From one row of the batch to the next; 0 with `cu_seqlens`.
        pub batch_stride: i64,
        /// From one step to the next.
        pub step_stride: i64,
    }
}

params! {
    /// What makes queries, or keys, of z: addresses of vectors of f32.
    pub struct Affine as "seqmix::gated_attention_unit::Affine" {
        /// `[dz]`; 0: there is none.
        pub gamma: u64,
        /// `[dz]`
        pub beta: u64,
    }
}

params! {
    /// What all kernels know of a call.
    pub struct Layer as "seqmix::gated_attention_unit::Layer" with [Rows] {
        /// `[batch, steps, dz]`
        pub z: Rows,
        /// Address of `[sequences + 1]` in i32; 0 if each row of the batch is a sequence.
        pub cu_seqlens: u64,
        /// Address of `[2 distances - 1]` in f32; 0 for none.
        pub bias: u64,
        /// Sequences.
        pub sequences: i32,
        /// Steps of each sequence, or of all together with `cu_seqlens`.
        pub steps: i32,
        /// Channels of z, a multiple of 8.
        pub dz: i32,
        /// Channels of values, a multiple of 8.
        pub dv: i32,
        /// Steps that have scores with each other, a multiple of [`ROWS`](super::ROWS).
        pub chunk: i32,
        /// Distances of `bias` to one side, with 0.
        pub distances: i32,
        /// 1: a query sees keys up to its own step; 0: all of its chunk.
        pub causal: i32,
        /// 1: rows are keys and columns are queries.
        pub reversed: i32,
        /// Multiplies scores.
        pub scale: f32,
        /// Multiplies the linear part.
        pub linear_scale: f32,
    }
}

params! {
    /// What the kernels of attention are given.
    pub struct AttendParams as "seqmix::gated_attention_unit::AttendParams" with [Layer, Rows, Affine] {
        /// The call.
        pub layer: Layer,
        /// What makes rows of scores.
        pub rows: Affine,
        /// What makes columns.
        pub columns: Affine,
        /// What makes rows in the linear part, or none.
        pub linear: Affine,
        /// `[batch, steps, dv]`: a row for each column of scores.
        pub values: Rows,
        /// As `values`, or none.
        pub gate: Rows,
        /// As `values`.
        pub out: Rows,
        /// As `values`, or none.
        pub other: Rows,
        /// Where `other` times the gate goes.
        pub product: Rows,
        /// Address of `[chunk slot, dz, dv]`, or 0: what a chunk's rows meet.
        pub states: u64,
        /// Address of `[chunk slot, slice]` in f32: what states were divided by.
        pub units: u64,
    }
}

params! {
    /// What the kernels of chunks' states are given.
    pub struct StatesParams as "seqmix::gated_attention_unit::StatesParams" with [Layer, Rows, Affine] {
        /// The call.
        pub layer: Layer,
        /// What makes columns in the linear part.
        pub linear: Affine,
        /// As in [`AttendParams`].
        pub values: Rows,
        /// Address of `[chunk slot, dz, dv]` in f32.
        pub states: u64,
    }
}

params! {
    /// What the kernels that add states up are given.
    pub struct CarryParams as "seqmix::gated_attention_unit::CarryParams" with [Layer, Rows] {
        /// The call.
        pub layer: Layer,
        /// As in [`StatesParams`].
        pub states: u64,
        /// Address of `[chunk slot, dz, dv]`: sums of states that the rows of a chunk meet.
        pub met: u64,
        /// Address of `[chunk slot, slice]` in f32.
        pub units: u64,
    }
}

params! {
    /// What the kernels of gradients are given.
    pub struct GradientParams as "seqmix::gated_attention_unit::GradientParams" with [Layer, Rows, Affine] {
        /// The call.
        pub layer: Layer,
        /// As in [`AttendParams`].
        pub rows: Affine,
        /// As in [`AttendParams`].
        pub columns: Affine,
        /// As in [`AttendParams`].
        pub linear: Affine,
        /// `[batch, steps, dv]`, of rows: the gradient of `a`, or the values.
        pub left: Rows,
        /// The same of columns: the other one of both.
        pub right: Rows,
        /// As in [`AttendParams`].
        pub states: u64,
        /// As in [`AttendParams`].
        pub units: u64,
        /// Address of `[all steps, dz]` in f32: the gradient of z on the way.
        pub part: u64,
        /// The end of that way, or none.
        pub dz: Rows,
        /// Address of `[tile slot, sums_of_tile]` in f32: gradients of gamma and beta, and of bias.
        pub sums: u64,
        /// Sums of one tile.
        pub sums_of_tile: i64,
        /// 1: `part` holds nothing yet.
        pub first: i32,
        /// 1: the gradient of bias is wanted.
        pub with_bias: i32,
    }
}

params! {
    /// Where sums over all steps go: addresses of vectors of f32.
    pub struct AffineGradient as "seqmix::gated_attention_unit::AffineGradient" {
        /// `[dz]`
        pub dgamma: u64,
        /// `[dz]`
        pub dbeta: u64,
    }
}

params! {
    /// What the kernel that adds the sums of all tiles is given.
    pub struct SumsParams as "seqmix::gated_attention_unit::SumsParams" with [Layer, Rows, AffineGradient] {
        /// The call.
        pub layer: Layer,
        /// As in [`GradientParams`].
        pub sums: u64,
        /// Sums of one tile.
        pub sums_of_tile: i64,
        /// Of what makes queries of the quadratic part.
        pub quadratic_q: AffineGradient,
        /// Of what makes keys of the quadratic part.
        pub quadratic_k: AffineGradient,
        /// Of what makes queries of the linear part.
        pub linear_q: AffineGradient,
        /// Of what makes keys of the linear part.
        pub linear_k: AffineGradient,
        /// Address of `[2 distances - 1]` in f32; 0 for none.
        pub dbias: u64,
        /// Gradients before that of bias, of dz numbers each: 4, or 8 with a linear part.
        pub affines: i64,
    }
}
