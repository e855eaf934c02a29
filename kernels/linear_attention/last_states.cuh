// The gradients of initial states with decays of channels where attention is not causal: those of the
// last states, times all decays; and their products with these states, which are the part of them that
// gradients of decays have.
//
// grid    x: parts of a head's channels of the keys; y: heads; z: sequences
// warp    takes one of these channels, its lanes those of the values in turn
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "linear_attention/last_channels_params.h"
#include "linear_attention/place.cuh"

namespace seqmix::linear_attention {

struct LastStates {
    static constexpr int kThreads = 256;
    static constexpr int kWarps = kThreads / 32;
    struct Smem {};

    __device__ __forceinline__ static void run(const LastStatesParams& params, Smem&) {
        const int key = static_cast<int>(blockIdx.x) * kWarps + warp_of_block();
        if (key >= params.channels) {
            return;
        }
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, params.segment,
                                         static_cast<int>(blockIdx.z));
        const int64_t row = (all.slot * params.heads + blockIdx.y) * params.channels + key;
        const float decay = params.passed[row];
        const auto at = [&](const States& states, int value) -> float* {
            return states.at == nullptr
                       ? nullptr
                       : states.at + blockIdx.z * states.sequence_stride +
                             blockIdx.y * states.head_stride + key * states.key_stride +
                             value * states.value_stride;
        };
        float sum = 0.f;
        const auto pass = [&](float gradient, const float* initial, float* out) {
            // what nothing passes is 0, however large it is
            const float faded = decay == 0.f ? 0.f : gradient * decay;
            if (out != nullptr) {
                *out = faded;
            }
            sum += initial == nullptr ? 0.f : faded * *initial;
        };
#pragma unroll 4
        for (int value = lane_of_warp(); value < params.values; value += 32) {
            pass(params.gradients[row * params.values + value], at(params.initial, value),
                 at(params.out, value));
        }
        if (params.z_gradients != nullptr && lane_of_warp() == 0) {
            pass(params.z_gradients[row], at(params.initial_z, 0), at(params.out_z, 0));
        }
        sum = warp_sum(sum);
        if (params.products != nullptr && lane_of_warp() == 0) {
            const int64_t sequence = static_cast<int64_t>(blockIdx.z) * params.heads + blockIdx.y;
            params.products[sequence * params.channels + key] = sum;
        }
    }
};

}  // namespace seqmix::linear_attention
