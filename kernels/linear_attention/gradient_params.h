// Parameters of the kernels that compute the gradients of linear attention; src/abi/linear_attention
// holds the same structs in Rust. Strides count elements.
#pragma once

#include <cstdint>

#include "linear_attention/params.h"

namespace seqmix::linear_attention {

// A walk by other roles than those of the forward pass:
//
//     gradient of   queries  keys  values   from
//     q             do       v     k        the first step
//     k             v        do    q        the last step
//     v             k        q     do       the last step
struct GradientWalkParams {
    Layer layer;            // of these roles: dk counts the channels of its queries and keys, dv those
                            // of its values
    Rows out;               // [batch, steps, heads, dv]
    Rows own;               // [batch, steps, heads] of f32, or none: products of each step's query and
                            // key, which are then left out
    Rows pairs;             // [batch, steps, heads, 16] of f32, or none, written: by what each step multiplies
                            // the values of those of its chunk that are before it
    Rows factors;           // [batch, steps, heads, 2] of f32, or none: of the gradient of each step's
                            // output, what multiplies it, and its channel of the normaliser
    States initial;         // before the walk, or none: zeros
    States last;            // after the walk, or none
    States initial_z;       // the same of the normaliser, without keys
    States last_z;
    States segments;        // as in WalkParams, a slot for each sequence stride
    float* z_segments;      // [slot, head, dv], likewise
    float* decays;          // as in WalkParams; by Mode::Read those of segments from the first step on
    void* spans;            // [span slot, head, ...]: the states at the borders of spans, as lanes hold
                            // them, or null
    float* span_units;      // [span slot, head, slice, warp]: what they were divided by
    float* z_spans;         // [span slot, head, dv]: the normaliser's
    float* dots;            // [span slot, head, dv]: the products of these states with those of this
                            // walk, at the same borders or `across` spans; null: this walk stores them
    int span;               // steps of a span: a multiple of a chunk that divides kSpan
    int mode;               // Mode
    int normalize;          // 1: the state has a channel of the normaliser
    int factored_keys;      // 1: `factors` are those of keys; 0: of queries
    int value_map;          // FeatureMap of the values
    int shift;              // 1: there is a step more than in time; the first has no key and no value, and
                            // the last no query
    int parts;              // 1: out is of f32; 2: as 1, and out and dots are added to
    int across;             // 1: `dots` are of the state before a span in time with that of this walk behind it
    float weight;           // multiplies what is added to the state, as layer.scale does what is read of it
    float factor_scale;     // multiplies `factors`, and with them `own`
};

// A tensor's gradient from those of the heads that share it.
struct SumHeadsParams {
    Rows parts;             // [batch, steps, heads, channels] of f32
    Rows more;              // as parts, or none: added to them
    Rows own;               // [batch, steps, heads] of f32, or none: what multiplies `other` of the
                            // same step
    Rows near;              // the same of each step and the one before it in time, or none
    Rows other;             // [batch, steps, its heads, channels]: mapped by `map` as well
    Rows x;                 // [batch, steps, heads that are shared, channels], or none: what was mapped
    Rows out;               // as x, written
    const float* bonus;     // [heads, channels], or null: multiplies `other`
    int64_t bonus_stride;   // from one head to the next
    const int* cu_seqlens;  // or null
    int steps;              // as in Layer
    int heads;              // that share: of `parts` to one of `out`
    int shared;             // heads of `out`
    int channels;
    int map;                // FeatureMap of x
    int single;             // 1: pairs of channels are not aligned
    int neighbour;          // `near` multiplies `other` of the step before (-1) or after (1)
    float scale;            // of `own` and `near`
};

// The gradients of decays, span by span.
struct DecayGradientParams {
    Rows q;                 // [batch, steps, heads_q, dk]
    Rows k;                 // [batch, steps, heads_k, dk]
    Rows dq;                // [batch, steps, heads, dk] of f32, without what passes no decay, by the
    Rows dk;                // mapped queries and keys
    Rows lookups;           // as dk, or none: what keys add as queries do, by the delta rule
    Decays decays;
    Decays out;             // as `decays`, written
    const float* dots;      // [span slot, head, dk]
    const int* cu_seqlens;  // or null
    int steps;              // as in Layer
    int heads;
    int channels;           // dk
    int query_map;
    int key_map;
    int per_channel;        // 1: a gradient for each channel; 0: their sum
    int span;               // as in GradientWalkParams
    int shift;              // as in GradientWalkParams: a step's key and decay are those of the one before
};

// The gradients of decays that a head has for all steps, chunk by chunk.
struct HeadDecayParams {
    Rows q;                 // as in DecayGradientParams
    Rows k;
    Rows dq;
    Rows dk;
    Rows lookups;
    Rows pairs;             // [batch, steps, heads, 16] of f32: what in `dq` multiplies the keys of the chunk
    Rows lookup_pairs;      // the same in `lookups`
    Decays decays;
    float* out;             // [span slot, head], written
    const float* dots;      // [span slot, head, dk]: in the slot of the border before each chunk
    const int* cu_seqlens;  // or null
    int steps;              // as in Layer
    int heads;
    int channels;           // dk
    int query_map;
    int key_map;
    int shift;              // as in DecayGradientParams
    int faded;              // 1: `pairs` have the decay between the two steps
};

// What the normaliser makes of the gradient of the output.
struct NormalizerGradientParams {
    Rows out;               // [batch, steps, heads, channels]
    Rows dout;              // as out
    Rows normalizer;        // [batch, steps, heads] of f32: what outputs were divided by, less eps
    Rows factors;           // [batch, steps, heads, 2] of f32, written: 1 / (n + eps), and the gradient
                            // of n
    Rows weighted;          // as dout, written, or none: dout times scale / (n + eps), for a walk that takes
                            // no factors
    Rows q;                 // [batch, steps, heads_q, keys]
    Rows balanced;          // [batch, steps, heads, keys], written, or none: q, mapped, times a power of two
                            // that `weighted` has less, so that each has half of the factor's exponent
    const int* cu_seqlens;  // or null
    int steps;              // as in Layer
    int channels;           // dv
    int keys;               // dk
    int map;                // FeatureMap of q
    float eps;
    float scale;
};

// The product of two rows for each step.
struct RowProductsParams {
    Rows left;              // [batch, steps, its heads, channels], mapped by `map`
    Rows right;             // likewise of its heads, not mapped
    Rows products;          // [batch, steps, heads] of f32, written
    Rows factors;           // as in GradientWalkParams, or none: makes scores of the products
    const int* cu_seqlens;  // or null
    int steps;              // as in Layer
    int channels;
    int map;                // FeatureMap of `left`
    int wide;               // 1: `right` is of f32
    float factor_scale;     // multiplies `factors`
    int padding;
};

// The gradients of decays where attention is not causal.
struct LastDecaysParams {
    Rows products;          // [batch, steps, heads] of f32: of keys with their gradients
    Decays out;             // as the decays, written
    States initial;         // before each sequence, or none: zeros
    States initial_z;       // the same of the normaliser, without values
    const float* gradients;    // [slot, head, dk, dv]: in a sequence's first slot, of its last state
    const float* z_gradients;  // [slot, head, dk]
    const float* decays;    // [slot, head]: of segments
    const int* cu_seqlens;  // or null
    int steps;              // as in Layer
    int sequences;
    int heads;
    int channels;           // dk
    int values;             // dv
    int segment;            // as in Layer
    int per_head;           // 1: a number a head, the sum over all steps
};

// Sums over all spans, in order.
struct SumSpansParams {
    const float* parts;     // [span slot, numbers]
    float* out;             // [numbers / columns, columns]
    const int* cu_seqlens;  // or null
    int64_t out_stride;     // from one row of out to the next
    int steps;              // as in Layer
    int sequences;
    int numbers;
    int columns;            // of a row of out
    int span;               // as in GradientWalkParams
    int shift;              // 1: there is a step more, as in GradientWalkParams
    float scale;            // of the sums
};

// The gradient of the bonus, span by span.
struct BonusGradientParams {
    Rows q;                 // [batch, steps, heads_q, dk]
    Rows k;                 // [batch, steps, heads_k, dk]
    Rows own;               // [batch, steps, heads] of f32: each step's value times its output's gradient
    float* parts;           // [span slot, head, dk]
    const int* cu_seqlens;  // or null
    int steps;              // as in Layer
    int heads;
    int channels;           // dk
    int map;                // FeatureMap of q and k
};

}  // namespace seqmix::linear_attention
