// Parameters of the kernels of state space duality. src/abi/ssd.rs holds the same structs in Rust;
// the stub of each kernel asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

namespace seqmix::ssd {

// A tensor with a row for each step and each head or group.
struct Rows {
    void* at;              // null: there is none
    int64_t batch_stride;  // 0 with cu_seqlens
    int64_t step_stride;
    int64_t head_stride;
};

// States [sequence, head, channel, state] of f32, the last axis contiguous.
struct States {
    float* at;  // null: there are none
    int64_t sequence_stride;
    int64_t head_stride;
    int64_t channel_stride;
};

// What is computed, and how it is cut into blocks.
struct Layer {
    Rows x;                  // [batch, steps, heads, headdim]
    Rows dt;                 // [batch, steps, heads]
    Rows b;                  // [batch, steps, groups, dstate]
    Rows c;                  // as b
    Rows z;                  // as x, or none
    const float* a;          // [heads]
    const float* dt_bias;    // [heads], or null
    const float* d;          // [heads] or [heads, headdim], or null
    const int* cu_seqlens;   // [sequences + 1] first steps of the sequences, or null
    int64_t d_head_stride;
    int64_t d_channel_stride;  // 0: one number a head
    int steps;               // of each sequence; with cu_seqlens of all together
    int heads;
    int heads_per_group;
    int headdim;             // multiple of 8
    int dstate;              // multiple of 8, at most that of the kernel
    int segment;             // steps of a segment, a multiple of a chunk
    int softplus;            // 1: step sizes are softplus(dt + dt_bias); 0: dt + dt_bias
    float dt_min;            // the limits of step sizes
    float dt_max;
};

struct ForwardParams {
    Layer layer;
    Rows out;              // as x
    States initial;        // or none: zeros
    States last;            // after each sequence, or none
    const float* starts;   // [slot, head, headdim, dstate]: states before segments; null: there is
                           // one segment a sequence
};

struct SegmentParams {
    Layer layer;
    float* states;  // [slot, head, headdim, dstate]: after a segment that begins with zeros
    float* decays;  // [slot, head]: what a segment multiplies the state before it by
};

struct CarryParams {
    States initial;         // or none: zeros
    const int* cu_seqlens;  // or null
    float* states;          // as in SegmentParams; afterwards the states before each segment
    const float* decays;
    int64_t head_size;      // headdim * dstate
    int steps;
    int heads;
    int dstate;
    int segment;
};

}  // namespace seqmix::ssd
