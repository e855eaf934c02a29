// Parameters of the kernels of the linear recurrent unit. src/abi/lru.rs holds the same structs in Rust; the
// stub of each kernel asserts that they agree. Strides count complex numbers.
#pragma once

#include <cstdint>

namespace seqmix::lru {

// States of a block, one a thread.
constexpr int kThreads = 128;

// Steps that a thread reads before it takes the first of them, and from one kept state to the next.
constexpr int kGroup = 8;

// [batch, seqlen, states] of complex numbers, whose states lie contiguously; null: there is none.
struct Signal {
    void* at;
    int64_t batch_stride;
    int64_t step_stride;
};

// [rows, states] of complex numbers of f32, whose states lie contiguously; null: there is none.
struct Rows {
    float2* at;
    int64_t row_stride;
};

// What all passes read.
struct Layer {
    Signal x;
    const float2* a;         // [states] logarithms of eigenvalues
    const float* gamma;      // [states], or null: ones
    Rows initial;            // before each sequence, or none: zeros
    const int* cu_seqlens;   // [sequences + 1], or null: one sequence for each of the batch
    float2* ends;            // [sequences, segments, 2, states]: what each segment adds to its last state, and the
                             // factor of what enters it; null if there is one
    int sequences;
    int seqlen;
    int states;
    int segments;            // of each sequence
    int tiles;               // blocks along the states
};

// Of the passes from the first step to the last.
struct ForwardParams {
    Layer layer;
    Signal out;      // the states after each step
    Signal dout;
    Rows last;       // or none
    float2* kept;    // [slots, states]: what enters each group of steps
    float2* turns;   // [sequences, segments, 2, states]: as ends, of gradients
};

struct BackwardParams {
    Layer layer;
    Signal dout;
    Signal dx;
    Rows dlast;            // or none
    Rows dinitial;         // or none
    const float2* kept;    // as of the forward pass
    const float2* turns;   // null if there is one segment
    float2* sums;          // [sequences, segments, 2, states]: of da, and of dgamma with 0
};

struct SumsParams {
    const float2* sums;
    float2* da;     // or null
    float* dgamma;  // or null
    int rows;       // sequences times segments
    int states;
};

struct StepParams {
    Signal x;  // a step stride of 0
    Signal out;
    const float2* a;
    const float* gamma;          // or null
    Rows state;                  // by entry, read and written
    const int* entries_of_rows;  // [batch], or null: entry b for row b
    int entries;
    int states;
    int tiles;
};

}  // namespace seqmix::lru
