// Passes states from segment to segment: from those after segments that begin with zeros to those
// before each segment, in the order of the walk; or to the last one, which all steps of a sequence
// read if attention is not causal.
//
// grid    x: parts of a head's state; y: heads; z: sequences
// thread  owns a number of the state, and walks over the segments
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"

namespace seqmix::linear_attention {

struct Carry {
    static constexpr int kThreads = 128;
    struct Smem {};

    __device__ __forceinline__ static void run(const CarryParams& params, Smem&) {
        const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + thread_of_block();
        if (at >= params.head_size) {
            return;
        }
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, params.segment,
                                         static_cast<int>(blockIdx.z));
        const int key = static_cast<int>(at / params.dv);
        const int value = static_cast<int>(at % params.dv);
        const auto place = [&](const States& states) -> float* {
            return states.at + blockIdx.z * states.sequence_stride +
                   blockIdx.y * states.head_stride + key * states.key_stride +
                   value * states.value_stride;
        };
        const auto slot = [&](int segment) -> float* {
            return params.segments +
                   ((all.slot + segment) * params.heads + blockIdx.y) * params.head_size + at;
        };
        float state = params.initial.at != nullptr ? *place(params.initial) : 0.f;
        const int count = params.all != 0 ? all.segments : all.segments - 1;
        for (int segment = 0; segment < count; ++segment) {
            const int64_t head = (all.slot + segment) * params.heads + blockIdx.y;
            const float decay =
                params.decays[head * params.decays_of_head + key % params.decays_of_head];
            const float end = *slot(segment);
            if (params.all == 0) {
                *slot(segment) = state;
            }
            state = decay * state + end;
        }
        // before the last segment, of which nothing was computed; or after it
        *slot(params.all != 0 ? 0 : count) = state;
        if (params.all != 0 && params.last.at != nullptr) {
            *place(params.last) = state;
        }
    }
};

}  // namespace seqmix::linear_attention
