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
    const float* starts;   // [slot, head, headdim, dstate]: states before segments; null: one segment
                           // a sequence
};

// A walk over sequences that computes states, or backwards the gradients of states.
struct SweepParams {
    Layer layer;             // backwards, x is the gradient of the outputs and b is C
    States before;           // where the walk begins, or none: zeros
    States after;            // where it ends, or none
    float* segments;         // [slot, head, headdim, dstate], see `phase`; null: one segment a sequence
    float* decays;           // [slot, head]: what a segment multiplies the state before it by
    void* chunks;            // [chunk slot, head, headdim, dstate]: the states before each chunk of the
                             // walk, divided by their units
    float* units;            // [chunk slot, head, slice]
    const void* met;         // backwards: chunks and units of the forward walk, and
    const float* met_units;
    float* dots;             // [chunk slot, head, slice, 4], summands of the product of both states
    int phase;               // 0: segments begin with zeros, and the states after them are stored;
                             // 1: they begin with the states in `segments`, and `chunks` are stored
};

struct CarryParams {
    States before;          // as in SweepParams
    const int* cu_seqlens;  // or null
    float* segments;        // the states after segments that begin with zeros; afterwards those before
                            // each segment
    const float* decays;
    int64_t head_size;      // headdim * dstate
    int steps;
    int heads;
    int dstate;
    int segment;
    int backward;           // 1: from the last segment to the first
};

struct GradientParams {
    Layer layer;
    Rows dout;                   // as x
    Rows dx;                     // as x
    Rows dz;                     // as x, or none
    Rows ddt;                    // as dt
    const void* states;          // [chunk slot, head, headdim, dstate]: before each chunk
    const float* state_units;    // [chunk slot, head, slice]
    const void* gradients;       // the same of the gradients of the states after each chunk
    const float* gradient_units;
    const float* dots;           // [chunk slot, head, slice, 4]
    float* coefficients;         // [2, part, chunk slot, group, chunk, dstate]: dB and dC
    float* sums;                 // [chunk slot, head, sums_of_head]: dA, ddt_bias and dD
    int64_t chunk_slots;
    int heads_per_part;          // heads of a group that one block takes
    int sums_of_head;            // 3, or with D per channel 2 + headdim
};

struct SumCoefficientsParams {
    const float* coefficients;  // as in GradientParams
    Rows db;                    // as b
    Rows dc;
    const int* cu_seqlens;
    int64_t chunk_slots;
    int steps;
    int groups;
    int parts;
    int dstate;
};

struct SumParametersParams {
    const float* sums;  // as in GradientParams
    float* da;          // [heads]
    float* ddt_bias;    // [heads], or null
    float* dd;          // [heads] or [heads, headdim], or null
    const int* cu_seqlens;
    int64_t dd_head_stride;
    int64_t dd_channel_stride;
    int steps;
    int sequences;
    int heads;
    int sums_of_head;
    int chunk;  // steps of a chunk
};

}  // namespace seqmix::ssd
