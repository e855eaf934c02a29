// Parameters of a single step. src/abi/linear_attention/step.rs holds the same struct in Rust; the stub of
// the kernel asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

#include "linear_attention/params.h"

namespace seqmix::linear_attention {

// Types of elements.
enum ElementType { kF16 = 0, kBf16 = 1, kF32 = 2 };

struct StepParams {
    Rows q;     // [batch, heads_q, dk]; step strides are not used
    Rows k;     // [batch, heads_k, dk]
    Rows v;     // [batch, heads_v, dv]
    Rows out;   // [batch, heads, dv]
    Rows beta;  // [batch, heads], or none: the linear rule
    Decays decays;
    States state;      // [entries, heads, dk, dv], read and written; the last axis contiguous
    States z;          // [entries, heads, dk], read and written, or none: outputs are not normalised
    const float* bonus;  // [heads, dk], or null
    int64_t bonus_stride;
    const int* entries_of_rows;  // [batch], or null: entry b for row b
    int entries;
    int heads;
    int dk;
    int dv;
    int slices;          // of a block
    int blocks_of_head;
    int feature_map;     // FeatureMap
    int dtype;           // ElementType of q, k, v, beta and out
    int ragged;          // 0: rows of the state are whole pieces of 16 bytes
    float scale;
    float eps;           // added to what outputs are divided by
};

}  // namespace seqmix::linear_attention
