// Parameters of the kernels of the delta rule; src/abi/linear_attention/delta.rs holds the same structs in
// Rust. Strides count elements.
#pragma once

#include <cstdint>

#include "linear_attention/params.h"

namespace seqmix::linear_attention {

struct DeltaParams {
    WalkParams walk;
    Rows beta;        // [batch, steps, heads]
    Rows errors;      // [batch, steps, heads, dv]: E, written, and `walk.out` is U then; or none, and it is O
    int identity;     // 1: segments begin with the identity, and there are no values; by Mode::States
    int padding;
};

struct DeltaGradientParams {
    DeltaParams delta;     // from the last step to the first: its queries are the keys, its keys the
                           // queries, its values dO, its states their gradients; `errors` is read, and
                           // `walk.out` is dV; by Mode::States without errors
    Rows parts;            // [batch, steps, heads, dv] of f32: dV once more; or none
    Rows betas;            // [part, batch, steps, heads] of f32: what each warp of channels adds to the
                           // gradients of beta
    int64_t betas_stride;  // from one part to the next
};

struct DeltaCarryParams {
    States initial;            // before each sequence, or none: zeros
    const int* cu_seqlens;     // or null
    float* segments;           // [slot, head, dk, dv]: the states after segments that begin with zeros;
                               // afterwards those before each segment
    const float* transitions;  // [slot, head, dk, dk]: what segments multiply the state before them by
    int steps;                 // as in Layer
    int heads;
    int dk;
    int dv;
    int segment;
    int padding;
};

struct SumBetasParams {
    Rows parts;              // [part, batch, steps, heads] of f32
    Rows out;                // [batch, steps, heads], written
    int64_t part_stride;
    const int* cu_seqlens;   // or null
    int steps;               // as in Layer
    int heads;
    int count;               // parts
    int padding;
};

}  // namespace seqmix::linear_attention
