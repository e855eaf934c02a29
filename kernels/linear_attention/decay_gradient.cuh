// The gradients of decays that are a number a step or a channel, from those of queries and keys.
//
// From one step to the next, dg_t = dg_{t+1} + q_t dq_t - k_t dk_t, where dq and dk are without what
// passes no decay: a step's own key and value, or with a bonus, where a step of these sums has the key,
// the value and the decay of the one before it in time, that one's (gradient_place.cuh); and what the
// last one adds to the last state. Rounding adds up in these sums, so they begin anew at the border of
// each span, where the product of the state with its gradient is known; and what they miss at its other
// border is spread over the span, which halves the error again.
//
// grid    x: spans; y: heads; z: sequences
// thread  takes a channel at a time; or if channels are summed, the lanes of a warp share a step
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/steps.cuh"
#include "linear_attention/sum_heads.cuh"

namespace seqmix::linear_attention {

template <typename Element>
struct DecayGradient {
    static constexpr int kThreads = 64;
    static constexpr int kWarps = kThreads / 32;

    // A column for each thread.
    struct Smem {
        float reads[kSpan][kThreads];   // q dq
        float writes[kSpan][kThreads];  // k dk
        float squares[kSpan];           // of both, summed over channels, for decays of steps
    };
    struct Span {
        int start;      // the first step in the row of the batch
        int steps;
        bool first;     // of its sequence
        bool last;
        int64_t slot;   // of the border before it, and the head
    };

    __device__ __forceinline__ static void run(const DecayGradientParams& params, Smem& smem) {
        const int sequence = static_cast<int>(blockIdx.z);
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, params.span, sequence);
        const int first = static_cast<int>(blockIdx.x) * params.span;
        const int left = all.steps + params.shift - first;
        const Span span = {
            all.start + first, min(left, params.span), first == 0, left <= params.span,
            span_slot(params.cu_seqlens, params.steps, params.span, sequence) + blockIdx.x};
        if (span.steps <= 0) {
            return;
        }
        const int thread = thread_of_block();
        if (params.per_channel != 0) {
#pragma unroll 1
            for (int channel = thread; channel < params.channels; channel += kThreads) {
#pragma unroll 4
                for (int i = 0; i < span.steps; ++i) {
                    const float2 both = products(params, span, i, channel);
                    smem.reads[i][thread] = both.x;
                    smem.writes[i][thread] = both.y;
                }
                add(params, smem, span, thread, channel, dot(params, span, 0, channel),
                    dot(params, span, 1, channel));
            }
            return;
        }
        const int lane = lane_of_warp();
#pragma unroll 1
        for (int i = warp_of_block(); i < span.steps; i += kWarps) {
            float2 sum = make_float2(0.f, 0.f);
            float squares = 0.f;
            for (int channel = lane; channel < params.channels; channel += 32) {
                const float2 both = products(params, span, i, channel);
                sum.x += both.x;
                sum.y += both.y;
                squares += both.x * both.x + both.y * both.y;
            }
            sum.x = warp_sum(sum.x);
            sum.y = warp_sum(sum.y);
            squares = warp_sum(squares);
            if (lane == 0) {
                smem.reads[i][0] = sum.x;
                smem.writes[i][0] = sum.y;
                smem.squares[i] = squares;
            }
        }
        __syncthreads();  // the sums of all steps, before the first warp reads them
        if (warp_of_block() == 0) {
            float dots[2] = {};
            for (int channel = lane; channel < params.channels; channel += 32) {
                dots[0] += dot(params, span, 0, channel);
                dots[1] += dot(params, span, 1, channel);
            }
            dots[0] = warp_sum(dots[0]);
            dots[1] = warp_sum(dots[1]);
            if (lane == 0) {
                add(params, smem, span, 0, 0, dots[0], dots[1]);
            }
        }
    }

    // q dq and k dk of the span's i-th step; what keys look up counts as what queries do.
    __device__ __forceinline__ static float2 products(const DecayGradientParams& params,
                                                      const Span& span, int i, int channel) {
        const int head = static_cast<int>(blockIdx.y);
        const auto product = [&](const Rows& x, const Rows& dx, int map, int step) {
            const Element* at = row_at<const Element>(x, step, head) + channel;
            return mapped_number(at, static_cast<FeatureMap>(map)) *
                   row_at<const float>(dx, step, head)[channel];
        };
        const bool last = span.last && i + 1 == span.steps;
        const int step = span.start + i;
        float2 both = make_float2(0.f, 0.f);
        if (!last || params.shift == 0) {
            both.x = product(params.q, params.dq, params.query_map, step);
            if (params.lookups.at != nullptr) {
                both.x += product(params.k, params.lookups, params.key_map, step);
            }
        }
        if (!last && has_key(params, span, i)) {
            both.y = product(params.k, params.dk, params.key_map, step - params.shift);
        }
        return both;
    }

    // Whether the span's i-th step has a key and a decay.
    __device__ __forceinline__ static bool has_key(const DecayGradientParams& params,
                                                   const Span& span, int i) {
        return !span.first || i >= params.shift;
    }

    // The address of the decay of the span's i-th step, in `decays` or its gradients.
    __device__ __forceinline__ static float* decay_at(const DecayGradientParams& params,
                                                      const Decays& decays, const Span& span,
                                                      int i, int channel) {
        return const_cast<float*>(decays.at) + blockIdx.z * decays.batch_stride +
               (span.start + i - params.shift) * decays.step_stride +
               blockIdx.y * decays.head_stride + channel * decays.channel_stride;
    }

    // The decay itself: 1 if there is none.
    __device__ __forceinline__ static float decay(const DecayGradientParams& params,
                                                  const Span& span, int i, int channel) {
        if ((span.last && i == span.steps) || !has_key(params, span, i)) {
            return 1.f;
        }
        return exp2_approx(exponent_of(*decay_at(params, params.decays, span, i, channel)));
    }

    // The product of the state with its gradient at the border before the span or behind it, with the
    // decay that lies there between the two.
    __device__ __forceinline__ static float dot(const DecayGradientParams& params,
                                                const Span& span, int border, int channel) {
        const int64_t head = (span.slot + border) * params.heads + blockIdx.y;
        return params.dots[head * params.channels + channel] *
               decay(params, span, border == 0 ? 0 : span.steps, channel);
    }

    // Adds up from the last step of the span to the first, of the products in a column. Sums are known
    // at both borders, and at steps whose decay is 0: what passes them is nothing, whatever rounding
    // says. What is missing from one such place to the next is spread over the steps in between as the
    // squares of what rounding acts on there: of each channel, since sums of channels may be small where
    // they are not.
    __device__ __forceinline__ static void add(const DecayGradientParams& params, Smem& smem,
                                               const Span& span, int column, int channel,
                                               float before, float behind) {
        const auto lost = [&](int i) { return decay(params, span, i, channel) == 0.f; };
        const auto square = [&](int i) {
            const float read = smem.reads[i][column];
            const float write = smem.writes[i][column];
            return params.per_channel == 0 ? smem.squares[i] : read * read + write * write;
        };
        float sum = behind;
        int last = span.steps - 1;
#pragma unroll 1
        while (last >= 0) {
            float missing = -sum;
            float squares = 0.f;
            int first = last;
#pragma unroll 1
            for (;; --first) {
                const float read = smem.reads[first][column];
                const float write = smem.writes[first][column];
                missing -= read - write;
                squares += square(first);
                if (first == 0 || lost(first)) {
                    break;
                }
            }
            const bool ends = lost(first);
            missing += ends ? 0.f : before;
            // nothing is missing of sums of nothing
            const float share = squares > 0.f ? missing / squares : 0.f;
#pragma unroll 1
            for (int i = last; i >= first; --i) {
                const float read = smem.reads[i][column];
                const float write = smem.writes[i][column];
                sum += read - write + share * square(i);
                if (ends && i == first) {
                    sum = 0.f;
                }
                if (has_key(params, span, i)) {
                    *decay_at(params, params.out, span, i, channel) = sum;
                }
            }
            last = first - 1;
        }
    }
};

}  // namespace seqmix::linear_attention
