// What decays of channels make of keys, and of their gradients, where attention is not causal.
//
// The last state has of each key what the decays behind its step let through, and no query meets
// another decay. So keys are multiplied by these first, and walks over them have none (src/
// linear_attention/last_channels.rs); what comes back as the gradients of these keys is multiplied
// likewise. The gradient of a decay is the sum of k dk over the steps before it, and of the initial
// state times its gradient, channel by channel: nothing of that cancels.
//
// Sums over steps are made span by span, and of spans in order.
//
// grid    x: spans of steps, or one block for passes over spans; y: heads; z: sequences
// thread  takes a channel at a time
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/warp.cuh"
#include "linear_attention/features.cuh"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/last_channels_params.h"
#include "linear_attention/steps.cuh"
#include "linear_attention/sum_heads.cuh"

namespace seqmix::linear_attention {

// What a launch does; src/abi/linear_attention knows the numbers.
enum class LastPass {
    Exponents,  // of spans: adds the exponents of their decays
    Behind,     // over spans, from the last to the first: those of all behind each; then `passed`
    Keys,       // of spans: `faded`
    Gradients,  // of spans: completes `dk`, and adds k dk
    Before,     // over spans, in order: the sums of all before each
    Decays,     // of spans: `out`
};

template <typename Element>
struct LastChannels {
    static constexpr int kThreads = 128;
    struct Smem {};
    using Params = LastChannelsParams;

    // A span of steps, or all of a sequence.
    struct Place {
        Sequence all;
        int start;     // its first step in the row of the batch
        int steps;
        int64_t head;  // of the span's slot
    };

    __device__ __forceinline__ static void run(const Params& params, Smem&) {
        const int span = static_cast<int>(blockIdx.x);
        Place place;
        place.all = sequence_of(params.cu_seqlens, params.steps, kSpan,
                                static_cast<int>(blockIdx.z));
        place.start = place.all.start + span * kSpan;
        place.steps = min(place.all.steps - span * kSpan, kSpan);
        place.head = (place.all.slot + span) * params.heads + blockIdx.y;
#pragma unroll 1
        for (int c = thread_of_block(); c < params.channels; c += kThreads) {
            switch (static_cast<LastPass>(params.pass)) {
                case LastPass::Exponents: add_exponents(params, place, c); break;
                case LastPass::Behind: scan_exponents(params, place, c); break;
                case LastPass::Keys: fade_keys(params, place, c); break;
                case LastPass::Gradients: fade_gradients(params, place, c); break;
                case LastPass::Before: scan_sums(params, place, c); break;
                case LastPass::Decays: add_products(params, place, c); break;
            }
        }
    }

    __device__ __forceinline__ static void add_exponents(const Params& params, const Place& place,
                                                         int c) {
        if (place.steps <= 0) {
            return;
        }
        float sum = 0.f;
#pragma unroll 4
        for (int i = 0; i < place.steps; ++i) {
            sum += exponent(params, place, i, c);
        }
        params.exponents[place.head * params.channels + c] = sum;
    }

    __device__ __forceinline__ static void scan_exponents(const Params& params, const Place& place,
                                                          int c) {
        float sum = 0.f;
#pragma unroll 4
        for (int span = spans_of(place.all.steps, kSpan) - 1; span >= 0; --span) {
            const int64_t head = place.head + static_cast<int64_t>(span) * params.heads;
            float& at = params.exponents[head * params.channels + c];
            const float own = at;
            at = sum;
            sum += own;
        }
        // keys have all that is behind them: only the state before the first segment is left to fade
        const Sequence cut = sequence_of(params.cu_seqlens, params.steps, params.segment,
                                         static_cast<int>(blockIdx.z));
#pragma unroll 1
        for (int segment = 0; segment < cut.segments; ++segment) {
            const int64_t head = (cut.slot + segment) * params.heads + blockIdx.y;
            params.passed[head * params.channels + c] = segment == 0 ? exp2_approx(sum) : 1.f;
        }
    }

    __device__ __forceinline__ static void fade_keys(const Params& params, const Place& place,
                                                     int c) {
        from_last(params, place, c, [&](int step, float decay) {
            put(row_at<Element>(params.faded, step, static_cast<int>(blockIdx.y)) + c,
                key(params, step, c) * decay);
        });
    }

    __device__ __forceinline__ static void fade_gradients(const Params& params,
                                                          const Place& place, int c) {
        float sum = 0.f;
        from_last(params, place, c, [&](int step, float decay) {
            float& dk = row_at<float>(params.dk, step, static_cast<int>(blockIdx.y))[c];
            dk *= decay;
            sum += key(params, step, c) * dk;
        });
        if (params.sums != nullptr && place.steps > 0) {
            params.sums[place.head * params.channels + c] = sum;
        }
    }

    __device__ __forceinline__ static void scan_sums(const Params& params, const Place& place,
                                                     int c) {
        const int64_t sequence = static_cast<int64_t>(blockIdx.z) * params.heads + blockIdx.y;
        float sum = params.products[sequence * params.channels + c];
        const int spans = spans_of(place.all.steps, kSpan);
#pragma unroll 4
        for (int span = 0; span < spans; ++span) {
            const int64_t head = place.head + static_cast<int64_t>(span) * params.heads;
            float& at = params.sums[head * params.channels + c];
            const float own = at;
            at = sum;
            sum += own;
        }
    }

    __device__ __forceinline__ static void add_products(const Params& params, const Place& place,
                                                        int c) {
        if (place.steps <= 0) {
            return;
        }
        float sum = params.sums[place.head * params.channels + c];
#pragma unroll 4
        for (int i = 0; i < place.steps; ++i) {
            const int step = place.start + i;
            const_cast<float*>(params.out.at)[decay_offset(params.out, step) +
                                              c * params.out.channel_stride] = sum;
            sum += key(params, step, c) *
                   row_at<float>(params.dk, step, static_cast<int>(blockIdx.y))[c];
        }
    }

private:
    // Calls with(step, the decay behind it) from the span's last step to its first.
    template <typename With>
    __device__ __forceinline__ static void from_last(const Params& params, const Place& place,
                                                     int c, const With& with) {
        if (place.steps <= 0) {
            return;
        }
        const float behind = params.exponents[place.head * params.channels + c];
        float sum = 0.f;
#pragma unroll 4
        for (int i = place.steps - 1; i >= 0; --i) {
            with(place.start + i, exp2_approx(behind + sum));
            sum += exponent(params, place, i, c);
        }
    }

    // The exponent of the decay of the span's i-th step.
    __device__ __forceinline__ static float exponent(const Params& params, const Place& place,
                                                     int i, int c) {
        return exponent_of(params.decays.at[decay_offset(params.decays, place.start + i) +
                                            c * params.decays.channel_stride]);
    }

    __device__ __forceinline__ static int64_t decay_offset(const Decays& decays, int step) {
        return blockIdx.z * decays.batch_stride + step * decays.step_stride +
               blockIdx.y * decays.head_stride;
    }

    // A step's key as walks see it.
    __device__ __forceinline__ static float key(const Params& params, int step, int c) {
        const Element* at = row_at<const Element>(params.k, step, static_cast<int>(blockIdx.y)) + c;
        return mapped_number(at, static_cast<FeatureMap>(params.map));
    }
};

}  // namespace seqmix::linear_attention
