// Passes states from segment to segment: from those after segments that begin with zeros to those
// before each segment, in the order of the walk.
//
// grid    x: parts of a head's state; y: heads; z: sequences
// thread  owns four neighbouring numbers of the state, and walks over the segments
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "ssd/params.h"
#include "ssd/place.cuh"

namespace seqmix::ssd {

struct Carry {
    static constexpr int kThreads = 128;
    struct Smem {};

    __device__ __forceinline__ static void run(const CarryParams& params, Smem&) {
        const int64_t at =
            4 * (static_cast<int64_t>(blockIdx.x) * kThreads + thread_of_block());
        if (at >= params.head_size) {
            return;
        }
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, params.segment,
                                         static_cast<int>(blockIdx.z));
        float4 state = make_float4(0.f, 0.f, 0.f, 0.f);
        if (params.before.at != nullptr) {
            state = *reinterpret_cast<const float4*>(
                params.before.at + blockIdx.z * params.before.sequence_stride +
                blockIdx.y * params.before.head_stride +
                at / params.dstate * params.before.channel_stride + at % params.dstate);
        }
        for (int n = 0; n < all.segments; ++n) {
            const int segment = params.backward != 0 ? all.segments - 1 - n : n;
            const int64_t head = (all.slot + segment) * params.heads + blockIdx.y;
            auto* slot = reinterpret_cast<float4*>(params.segments + head * params.head_size + at);
            if (n + 1 < all.segments) {
                const float decay = params.decays[head];
                const float4 end = *slot;
                *slot = state;
                state.x = decay * state.x + end.x;
                state.y = decay * state.y + end.y;
                state.z = decay * state.z + end.z;
                state.w = decay * state.w + end.w;
            } else {
                *slot = state;  // nothing was computed of the last one
            }
        }
    }
};

}  // namespace seqmix::ssd
