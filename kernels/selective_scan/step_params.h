// Parameters of a single step. src/abi/selective_scan/step.rs holds the same structs in Rust; the stub of
// the kernel asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

namespace seqmix::selective_scan {

// How four states lie: one by one, aligned as one, or as one number that stands for all states.
enum PieceKind { kApart = 0, kAligned = 1, kSame = 2 };

// A tensor by row of the batch, head, channel of the head, and state; axes that it lacks have a stride
// of 0.
struct Heads {
    void* at;  // null: there is none
    int64_t batch_stride;
    int64_t head_stride;  // of B and C: from one group to the next
    int64_t channel_stride;
    int64_t state_stride;
    int pieces;  // a PieceKind
    int dtype;   // an ElementType, as all that is called so
};

// A causal convolution of x, B and C, whose channels count in this order. Its last inputs are kept in
// rings: that of the current step goes to the slot of its number modulo `slots`, of which there are more
// than inputs that are read, so that no block overwrites what another one reads.
struct StepConvolution {
    void* ring;  // [entries, channels, slots]; null: there is no convolution
    int64_t ring_entry_stride;
    int64_t ring_channel_stride;
    int64_t ring_slot_stride;
    const void* weight;  // [channels, width]; the last tap meets the current step
    int64_t weight_channel_stride;
    int64_t weight_tap_stride;
    const void* bias;  // [channels], or null
    int64_t bias_stride;
    const int* steps;     // [batch] numbers of the current steps
    int weight_dtype;
    int bias_dtype;
    int slots;
    int width;
    int silu;
};

struct StepParams {
    Heads state;  // [entries, ...], read and written
    Heads x;
    Heads dt;
    Heads a;
    Heads b;
    Heads c;
    Heads skip;     // D, or none
    Heads dt_bias;  // or none
    Heads z;        // or none
    Heads out;
    StepConvolution convolution;
    const int* entries_of_rows;  // [batch], or null: entry b for row b
    int entries;
    int groups;
    int heads_of_group;
    int channels;     // of a head
    int tile;         // channels of a block
    int group_tiles;  // blocks of a group
    int states;       // floats of a channel's state
    int lane_bits;    // log2 of the lanes that share a channel
    int softplus;
    float dt_min;
    float dt_max;
};

}  // namespace seqmix::selective_scan
