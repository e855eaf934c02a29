// Parameters of the kernels of linear attention. src/abi/linear_attention holds the same structs in
// Rust; the stub of each kernel asserts that they agree. Strides count elements.
//
// The kernels walk over sequences by three roles: queries read a state, keys and values make it. The
// forward pass gives them q, k and v; gradients are walks whose roles are played by others, and some
// of them begin at the last step.
#pragma once

#include <cstdint>

namespace seqmix::linear_attention {

// A tensor with a row for each step and each of its heads.
struct Rows {
    void* at;              // null: there is none
    int64_t batch_stride;  // 0 with cu_seqlens
    int64_t step_stride;
    int64_t head_stride;
    int64_t shared;        // heads that share one of this tensor
};

// Natural logarithms of decays in f32, one for each batch, step, head and channel of the keys; a
// stride is 0 along what they do not depend on.
struct Decays {
    const float* at;  // null: there are none
    int64_t batch_stride;
    int64_t step_stride;
    int64_t head_stride;
    int64_t channel_stride;
};

// States of f32, a number for each sequence, head, channel of the keys and channel of the values.
struct States {
    float* at;  // null: there are none
    int64_t sequence_stride;
    int64_t head_stride;
    int64_t key_stride;
    int64_t value_stride;
};

// What is computed, and how it is cut into blocks.
struct Layer {
    Rows q;                 // [batch, steps, heads_q, dk]
    Rows k;                 // [batch, steps, heads_k, dk]
    Rows v;                 // [batch, steps, heads_v, dv]
    Decays decays;
    const float* bonus;     // [heads, dk], or null: queries read their own step's state
    int64_t bonus_head_stride;
    const int* cu_seqlens;  // [sequences + 1] first steps of the sequences, or null
    int steps;              // of each sequence; with cu_seqlens of all together
    int heads;
    int dk;                 // multiple of 8, at most that of the kernel
    int dv;                 // multiple of 8
    int segment;            // steps of a segment, a multiple of a tile
    int query_map;          // FeatureMap of the queries
    int key_map;            // FeatureMap of the keys
    int reversed;           // 1: from the last step to the first; a step's decay then comes after it
    float scale;            // multiplies what is read
};

struct WalkParams {
    Layer layer;
    Rows out;           // [batch, steps, heads, dv]
    Rows normalizer;    // [batch, steps, heads] in f32, or none: what outputs are divided by, less eps
    States initial;     // before each sequence, or none: zeros
    States last;        // after each sequence, or none
    States initial_z;   // the same of the normaliser, without values
    States last_z;
    float* segments;    // [slot, head, dk, dv], see Mode; null: one segment a sequence
    float* decays;      // [slot, head] or per channel [slot, head, dk]: what a segment multiplies the
                        // state before it by
    float* z_segments;  // [slot, head, dk], as `segments`
    int mode;           // Mode
    int normalize;      // 1: outputs are divided
    float eps;          // added to what they are divided by
    // With decays of channels only:
    int parts;          // 1: out is of f32
    float weight;       // multiplies what is added to the state
    int padding;
};

struct CarryParams {
    States initial;         // as in WalkParams
    States last;            // after each sequence, or none; only if all segments were computed
    const int* cu_seqlens;  // or null
    float* segments;        // the states after segments that begin with zeros; afterwards those before
                            // each segment, or with `all` the last one in the first slot
    const float* decays;
    int64_t head_size;      // dk * dv
    int steps;
    int heads;
    int dv;                 // 1 for the normaliser's
    int segment;
    int decays_of_head;     // 1 or dk
    int all;                // 1: the last segment was computed too
};

}  // namespace seqmix::linear_attention
