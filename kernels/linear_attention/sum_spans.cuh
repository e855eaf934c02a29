// Adds sums over spans of steps to sums over all steps of all sequences, in an order that depends on
// nothing but their sizes.
//
// grid    x: numbers
// block   one warp, whose lanes take the spans of a sequence in turn
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"

namespace seqmix::linear_attention {

struct SumSpans {
    static constexpr int kThreads = 32;
    struct Smem {};

    __device__ __forceinline__ static void run(const SumSpansParams& params, Smem&) {
        const int number = static_cast<int>(blockIdx.x);
        float sum = 0.f;
        for (int sequence = 0; sequence < params.sequences; ++sequence) {
            const int steps =
                sequence_of(params.cu_seqlens, params.steps, params.span, sequence).steps +
                params.shift;
            const int64_t slot =
                span_slot(params.cu_seqlens, params.steps, params.span, sequence);
            for (int span = lane_of_warp(); span < spans_of(steps, params.span); span += 32) {
                sum += params.parts[(slot + span) * params.numbers + number];
            }
        }
        sum = warp_sum(sum);
        if (lane_of_warp() == 0) {
            params.out[number / params.columns * params.out_stride + number % params.columns] =
                params.scale * sum;
        }
    }
};

}  // namespace seqmix::linear_attention
