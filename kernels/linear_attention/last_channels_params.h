// Parameters of the kernels of gradients with decays of channels where attention is not causal;
// src/abi/linear_attention holds the same structs in Rust. Strides count elements.
#pragma once

#include <cstdint>

#include "linear_attention/params.h"

namespace seqmix::linear_attention {

// What the decays behind each step make of keys and of their gradients, span by span.
struct LastChannelsParams {
    Rows k;                 // [batch, steps, heads_k, dk]
    Rows faded;             // [batch, steps, heads, dk], written: k, mapped, as the last state has it
    Rows dk;                // [batch, steps, heads, dk] of f32: what keys read of the last state's gradient;
                            // then their own gradients
    Decays decays;
    Decays out;             // as `decays`, written
    float* exponents;       // [span slot, head, dk]: of the decays of a span; then of all behind it
    float* sums;            // [span slot, head, dk]: of k dk in a span; then of all before it
    float* passed;          // [slot, head, dk]: decays of segments for Carry, of which the first has all
    const float* products;  // [sequence, head, dk]: of the initial state and its gradient
    const int* cu_seqlens;  // or null
    int steps;              // as in Layer
    int heads;
    int channels;           // dk
    int segment;            // as in Layer
    int map;                // FeatureMap of k
    int pass;               // LastPass
};

// The gradients of initial states.
struct LastStatesParams {
    States initial;         // before each sequence, or none: zeros
    States initial_z;       // the same of the normaliser, without values
    States out;             // as initial, written, or none
    States out_z;           // as initial_z, written, or none
    const float* gradients;    // [slot, head, dk, dv]: in a sequence's first slot, of its last state
    const float* z_gradients;  // [slot, head, dk], or null
    const float* passed;    // [slot, head, dk]: in the first slot, all decays
    float* products;        // [sequence, head, dk], written, or null: of initial states and their gradients
    const int* cu_seqlens;  // or null
    int steps;              // as in Layer
    int heads;
    int channels;           // dk
    int values;             // dv
    int segment;            // as in Layer
    int padding;
};

}  // namespace seqmix::linear_attention
