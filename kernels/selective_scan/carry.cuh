// Carries states from segment to segment of each sequence: what one leaves behind, from zeros, and what
// entered it, less by all its decays, enters the next.
//
// grid    x: numbers of all channels of all sequences
// thread  owns one number of one channel's state
//
// The decays of a segment are exp(A sum of its step sizes): one exponential.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "selective_scan/number.cuh"
#include "selective_scan/params.h"

namespace seqmix::selective_scan {

template <typename Number>
struct Carry {
    static constexpr int kThreads = 256;

    struct Smem {};

    __device__ __forceinline__ static void run(const CarryParams& params, Smem&) {
        const int numbers = params.states / kFloats<Number>;
        const int64_t index = int64_t{blockIdx.x} * kThreads + thread_of_block();
        if (index >= params.numbers) {
            return;
        }
        const int64_t sequence = index / numbers / params.dim;
        const int64_t channel = index / numbers % params.dim;
        const int at = kFloats<Number> * static_cast<int>(index % numbers);
        const auto load = [&](const float* row, int64_t stride) {
            float floats[kFloats<Number>];
#pragma unroll
            for (int i = 0; i < kFloats<Number>; ++i) {
                floats[i] = row[(at + i) * stride];
            }
            Number number[1];
            to_numbers<Number, 1>(number, floats);
            return number[0];
        };
        const Number a =
            load(params.a.at + channel * params.a.channel_stride, params.a.state_stride);
        Number state = {};
        if (params.first.at != nullptr) {
            state = load(params.first.at + sequence * params.first.sequence_stride +
                             channel * params.first.channel_stride,
                         params.first.state_stride);
        }
        for (int i = 0; i < params.count - 1; ++i) {
            // the last segment leaves nothing to another one
            const int segment = params.backward ? params.count - 1 - i : i;
            const int64_t row = (sequence * params.count + segment) * params.dim + channel;
            float* to = params.segments.states + row * params.states;
            Number factor = decay(a, params.segments.deltas[row]);
            if (params.backward) {
                factor = conjugate(factor);
            }
            state = add_product(load(to, 1), factor, state);
            const Number number[1] = {state};
            float floats[kFloats<Number>];
            to_floats<Number, 1>(floats, number);
#pragma unroll
            for (int j = 0; j < kFloats<Number>; ++j) {
                to[at + j] = floats[j];
            }
        }
    }
};

}  // namespace seqmix::selective_scan
