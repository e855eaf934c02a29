// Parameters of the causal convolution's kernels. src/abi/causal_conv1d.rs holds the same structs in
// Rust; the stub of each kernel asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

namespace seqmix::causal_conv1d {

// [batch, dim, seqlen], contiguous along dim or along seqlen.
struct Signal {
    void* at;  // null: there is none
    int64_t batch_stride;
    int64_t line_stride;  // along the axis that does not lie contiguously
    int64_t vector;       // 1: address and strides are multiples of 16 bytes
};

// [sequences, dim, width - 1] inputs before a sequence, oldest first; or [batch, dim] of one step.
struct State {
    void* at;  // null: there is none
    int64_t sequence_stride;
    int64_t channel_stride;
    int64_t step_stride;
};

// The taps of each channel; of gradients: where they go.
struct Filter {
    void* weight;  // [dim, width]; the last tap meets the current step
    void* bias;    // [dim], or null
    int64_t weight_channel_stride;
    int64_t weight_tap_stride;
    int64_t bias_stride;
    int dtype;  // an ElementType, of both
    int width;
};

// How the axis of steps is divided.
struct Packing {
    const int* cu_seqlens;  // [sequences + 1] first steps of packed sequences, or null
    int sequences;          // packed in one row of the batch; 1 without cu_seqlens
    int seqlen;             // steps of a row
};

struct ForwardParams {
    Signal x;
    Filter filter;
    State initial_states;
    Signal out;
    State final_states;
    Packing packing;
    int dim;
    int channel_tiles;
    int step_tiles;   // of a row
    int line_chunks;  // log2 of the chunks of a tile's lines, contiguous along seqlen
    int silu;
};

struct BackwardParams {
    Signal x;
    Filter filter;
    State initial_states;
    Signal dout;
    State dfinal_states;
    Signal dx;
    State dinitial_states;
    float* partial;  // [slot, width + 1, dim] sums for dweight by lag, then for dbias; or null
    Packing packing;
    int dim;
    int channel_tiles;
    int step_tiles;
    int tiles;        // of all rows: step tiles of the batch
    int slot_tiles;   // of them that one block walks over
    int line_chunks;
    int silu;
};

struct SumParams {
    const float* partial;  // [slot, width + 1, dim]
    Filter gradient;
    int slots;
    int dim;
};

struct UpdateParams {
    State x;                          // [batch, dim]
    State conv_state;                 // [entries, dim, width - 1], read and written
    Filter filter;
    State out;                        // as x
    const int* conv_state_indices;    // [batch], or null: entry b for row b
    int entries;
    int dim;
    int channel_tiles;
    int silu;
};

// src/abi/causal_conv1d.rs has the same numbers.
enum ElementType { kF16 = 0, kBf16 = 1, kF32 = 2 };

}  // namespace seqmix::causal_conv1d
