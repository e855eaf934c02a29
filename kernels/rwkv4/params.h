// Parameters of RWKV-4's kernels. src/abi/rwkv4.rs holds the same structs in Rust; the stub of each kernel
// asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

namespace seqmix::rwkv4 {

// Channels of a block, one a thread.
constexpr int kThreads = 128;

// Steps that a thread reads before it takes the first of them, and from one kept state to the next.
constexpr int kGroup = 8;

// Floats of a channel: of a kept average, of what a segment's gradients leave behind, of its sums.
constexpr int kAverageFloats = 4;
constexpr int kTurnFloats = 3;
constexpr int kSumFloats = 2;

// [batch, seqlen, dim] of elements, whose channels lie contiguously; null: there is none.
struct Signal {
    void* at;
    int64_t batch_stride;
    int64_t step_stride;
};

// [rows, dim] of f32, or [dim] with a row stride of 0; null: there is none.
struct Rows {
    float* at;
    int64_t row_stride;
    int64_t channel_stride;
};

// What all passes read.
struct Layer {
    Signal k;
    Signal v;
    Rows decay;
    Rows bonus;
    Rows numerator;  // before each sequence, or none
    Rows denominator;
    Rows exponent;
    const int* cu_seqlens;  // [sequences + 1], or null: one sequence for each of the batch
    float* ends;  // [sequences, segments, kAverageFloats, dim]: each segment's own; null if there is one
    int sequences;
    int seqlen;
    int dim;
    int segments;       // of each sequence
    int channel_tiles;  // blocks along the channels
};

// Of the passes from the first step to the last.
struct ForwardParams {
    Layer layer;
    Signal out;
    Signal dout;
    Rows final_numerator;  // or none
    Rows final_denominator;
    Rows final_exponent;
    float* kept;   // [slots, kAverageFloats, dim]: what enters each group of steps
    float* turns;  // [sequences, segments, kTurnFloats, dim]
};

struct BackwardParams {
    Layer layer;
    Signal dout;
    Signal dk;
    Signal dv;
    Rows dfinal_numerator;  // or none
    Rows dfinal_denominator;
    Rows dinitial_numerator;  // or none
    Rows dinitial_denominator;
    const float* kept;   // as of the forward pass
    const float* turns;  // null if there is one segment
    float* sums;         // [sequences, segments, kSumFloats, dim]: of the decay's gradient and the bonus's
};

struct SumsParams {
    const float* sums;
    Rows ddecay;  // or none
    Rows dbonus;  // or none
    int rows;     // sequences times segments
    int dim;
};

struct StepParams {
    Signal k;  // a step stride of 0
    Signal v;
    Rows decay;
    Rows bonus;
    Rows numerator;  // by entry, read and written
    Rows denominator;
    Rows exponent;
    Signal out;
    const int* entries_of_rows;  // [batch], or null: entry b for row b
    int entries;
    int dim;
    int channel_tiles;
};

}  // namespace seqmix::rwkv4
