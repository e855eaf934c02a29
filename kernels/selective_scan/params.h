// Parameters of the selective scan kernels. src/abi/selective_scan.rs holds the same structs in Rust;
// the stub of each kernel asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

namespace seqmix::selective_scan {

// u, delta and what is like them: [batch, dim, seqlen].
struct Elements {
    void* at;  // null: there is none
    int64_t batch_stride;
    int64_t channel_stride;
    int64_t step_stride;
    int vector;  // 1: address and strides are multiples of 16 bytes, but for that of 1
    int dtype;   // an ElementType
};

// B or C. A complex number takes two places along the axis of states.
struct Coefficient {
    void* at;              // [batch, groups, states, seqlen], or [dim, states] of f32
    int64_t batch_stride;  // 0 if constant
    int64_t group_stride;  // from one channel to the next if constant
    int64_t state_stride;
    int64_t step_stride;  // 0 if constant
    int vector;           // 1: address and strides are multiples of 16 bytes, but for that of 1
    int kind;             // a CoefficientKind
};

// f32: [sequences, dim, states], or A with a sequence stride of 0.
struct States {
    float* at;  // null: there are none
    int64_t sequence_stride;
    int64_t channel_stride;
    int64_t state_stride;
};

// [dim]
struct Vector {
    const void* at;  // null: zeros
    int64_t stride;
};

// What all passes of a scan have in common.
struct Scan {
    Elements u;
    Elements delta;
    Elements z;  // or none
    States a;
    Coefficient b;
    Coefficient c;
    Vector skip;  // D
    Vector delta_bias;
    States initial_state;   // or none
    const int* cu_seqlens;  // [sequences + 1], or null: one sequence for each of the batch
    int sequences;
    int dim;
    int seqlen;  // of each sequence, or of all together with cu_seqlens
    int states;  // floats of a channel's state
    int groups;  // divide dim
    int segments;  // parts of each sequence that run side by side
    int skip_dtype;
    int delta_bias_dtype;
    int softplus;        // 1: step sizes are softplus(delta + delta_bias)
    int reverse;         // 1: from the last step to the first
    int along_channels;  // 1: channels lie contiguously; 0: steps do
    int checkpoint_bits;  // 2^this steps lie between the states of `checkpoints`
};

// Where states and sums of segments are: segments count in the order of the scan.
struct Segments {
    float* states;  // [sequences, segments, dim, states]; null for one segment
    float* deltas;  // [sequences, segments, dim]: sums of step sizes times log2(e)
};

struct ForwardParams {
    Scan scan;
    Elements out;       // or none
    Elements ungated;   // or none
    States last_state;  // or none
    Segments segments;
    float* checkpoints;  // [batch, seqlen / 2^checkpoint_bits, dim, states], or null
    int64_t pass;        // a Pass
};

struct CarryParams {
    States a;
    States first;  // what enters the first segment, or none for zeros
    Segments segments;
    int64_t numbers;  // of all channels of all sequences
    int dim;
    int states;
    int count;     // of segments
    int backward;  // 1: gradients, from the last segment to the first
};

struct BackwardParams {
    Scan scan;
    Elements dout;
    Elements du;
    Elements ddelta;
    Elements dz;            // or none
    States dlast_state;     // or none: zeros
    States dinitial_state;  // or none
    Segments segments;
    const float* checkpoints;  // as in ForwardParams
    // Sums of a block over its channels: [batch, blocks of channels, seqlen, B and C, states]; null if
    // neither is wanted, or both are constant.
    float* of_steps;
    // Sums of a block over its steps: [gradient, sequences, segments, dim, states], where the gradients
    // are those of A, and of B and C where these are constant.
    float* of_states;
    float* of_channels;  // The same of D and delta_bias: [gradient, sequences, segments, dim].
    int64_t pass;        // a Pass
};

// Adds up `BackwardParams::of_steps` over the blocks of each group.
struct StepSumsParams {
    const float* from;
    Coefficient b;  // dB, or none
    Coefficient c;  // dC, or none
    const int* cu_seqlens;
    int sequences;
    int seqlen;
    int states;
    int groups;
    int blocks_of_group;
    int dtype;
};

// One gradient that belongs to channels, added up over sequences and segments.
struct ChannelSum {
    const float* from;  // [rows, dim, states]
    float* to;          // [dim, states], or null
    int64_t channel_stride;
    int64_t state_stride;
    int states;   // of a channel
    int readout;  // 1: that of C
};

struct ChannelSumsParams {
    ChannelSum a;
    ChannelSum b;
    ChannelSum c;
    ChannelSum skip;
    ChannelSum delta_bias;
    int64_t rows;
    int64_t dim;
};

// src/abi/selective_scan.rs has the same numbers.
enum ElementType { kF16 = 0, kBf16 = 1, kF32 = 2 };
enum CoefficientKind { kAlongSteps = 0, kAlongStates = 1, kConstant = 2 };
// kWhole: from the true first states. kEnds: from zeros, for what each segment leaves behind.
enum Pass { kWhole = 0, kEnds = 1 };

}  // namespace seqmix::selective_scan
