// Parameters of the kernels of the gated attention unit. src/abi/gated_attention_unit holds the same structs in
// Rust; the stub of each kernel asserts that they agree. Strides count elements.
//
// Most kernels know rows and columns of scores, not queries and keys: forward, rows are queries; the
// gradients of keys and values take keys for rows, and are `reversed`.
#pragma once

#include <cstdint>

namespace seqmix::gated_attention_unit {

// A tensor with a row for each step.
struct Rows {
    void* at;              // null: there is none
    int64_t batch_stride;  // 0 with cu_seqlens
    int64_t step_stride;
};

// What makes queries, or keys, of z: gamma z + beta.
struct Affine {
    const float* gamma;  // [dz]; null: there is none
    const float* beta;   // [dz]
};

// What all kernels know of a call.
struct Layer {
    Rows z;                 // [batch, steps, dz]
    const int* cu_seqlens;  // [sequences + 1] first steps of the sequences, or null
    const float* bias;      // [2 distances - 1], or null
    int sequences;
    int steps;              // of each sequence; with cu_seqlens of all together
    int dz;                 // multiple of 8, at most the kernel's Size
    int dv;                 // multiple of 8
    int chunk;              // steps that have scores with each other, a multiple of kRows
    int distances;          // of `bias`
    int causal;             // 1: a query sees keys up to its own step; 0: all of its chunk
    int reversed;           // 1: rows are keys and columns are queries
    float scale;            // multiplies scores
    float linear_scale;     // multiplies the linear part
};

struct AttendParams {
    Layer layer;
    Affine rows;
    Affine columns;
    Affine linear;         // of rows, in the linear part, or none
    Rows values;           // [batch, steps, dv]: a row for each column of scores
    Rows gate;             // as values, or none
    Rows out;              // as values
    Rows other;            // as values, or none
    Rows product;          // other times gate, where there is an `other`
    const void* states;    // [chunk slot, dz, dv], or null: what a chunk's rows meet
    const float* units;    // [chunk slot, slice]: what states were divided by
};

struct StatesParams {
    Layer layer;
    Affine linear;   // of columns
    Rows values;     // as in AttendParams
    float* states;   // [chunk slot, dz, dv]
};

struct CarryParams {
    Layer layer;
    const float* states;  // as in StatesParams
    void* met;            // [chunk slot, dz, dv]: sums of states that the rows of a chunk meet
    float* units;         // [chunk slot, slice]
};

struct GradientParams {
    Layer layer;
    Affine rows;
    Affine columns;
    Affine linear;         // of rows, or none
    Rows left;             // [batch, steps, dv], of rows: the gradient of `a`, or the values
    Rows right;            // the same of columns: the other one of both
    const void* states;    // as in AttendParams, or null
    const float* units;
    float* part;           // [all steps, dz]: the gradient of z on the way
    Rows dz;               // the end of that way, or none
    float* sums;           // [tile slot, sums_of_tile]: gradients of gamma and beta, and of bias
    int64_t sums_of_tile;
    int first;             // 1: `part` holds nothing yet
    int with_bias;         // 1: the gradient of bias is wanted
};

// Where sums over all steps go.
struct AffineGradient {
    float* dgamma;  // [dz]; null: it is not wanted
    float* dbeta;   // [dz]
};

struct SumsParams {
    Layer layer;
    const float* sums;  // as in GradientParams
    int64_t sums_of_tile;
    AffineGradient quadratic_q;
    AffineGradient quadratic_k;
    AffineGradient linear_q;
    AffineGradient linear_k;
    float* dbias;     // [2 distances - 1], or null
    int64_t affines;  // gradients before that of bias, of dz numbers each: 4, or 8 with a linear part
};

}  // namespace seqmix::gated_attention_unit
