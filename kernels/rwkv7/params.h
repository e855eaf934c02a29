// Parameters of RWKV-7's kernels. src/abi/rwkv7.rs holds the same structs in Rust; the stub of each kernel
// asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

namespace seqmix::rwkv7 {

// Types of elements.
enum ElementType { kF16 = 0, kBf16 = 1, kF32 = 2 };

// Steps that a block reads together.
constexpr int kSteps = 8;

// Tiles of steps from one kept gradient of the state to the next.
constexpr int kSpanTiles = 8;

// [batch, seqlen, heads, channels], whose channels lie contiguously; null: there is none.
struct Rows {
    void* at;
    int64_t batch_stride;
    int64_t step_stride;
    int64_t head_stride;
};

// [entries, heads, dk, dv] of f32, whose last axis is contiguous; null: there is none.
struct States {
    float* at;
    int64_t entry_stride;
    int64_t head_stride;
    int64_t key_stride;
};

// What all kernels read.
struct Layer {
    Rows r;  // the first five have dk channels
    Rows k;
    Rows a;
    Rows b;
    Rows decay;  // logarithms, of f32
    Rows v;      // dv channels
    const int* cu_seqlens;  // [sequences + 1], or null: one sequence for each of the batch
    int seqlen;
    int heads;
    int dk;
    int dv;
    int dtype;          // ElementType of all rows that are not said to be of f32
    int ragged;         // 0: four channels of any row can be accessed at once
    int ragged_states;  // the same of states
    int slices;         // blocks along the values of a head
};

// Of the pass that computes outputs, and of one step.
struct ForwardParams {
    Layer layer;
    Rows out;
    Rows lookups;    // S^T a of each step, of f32, written, or none
    States initial_state;  // or none
    States final_state;    // or none; may be the initial one
    const int* entries_of_rows;  // [batch], or null: entry i for sequence i
    int64_t entries;             // that there are
};

// Of the two passes that compute gradients.
struct BackwardParams {
    Layer layer;
    Rows dout;
    Rows lookups;   // of f32
    Rows dlookups;  // of f32: written by the first pass
    Rows dr;
    Rows dk;
    Rows dv;
    Rows da;
    Rows db;
    Rows ddecay;  // of f32; in between, what the first pass leaves to the second
    States initial_state;   // or none
    States dfinal_state;    // or none
    States dinitial_state;  // or none
    float* spans;  // [spans, heads, Size, Size]: the gradient of the state that enters each span of steps
};

}  // namespace seqmix::rwkv7
