// One step of each sequence of a batch, whose averages stay in memory between calls.
//
// grid    x: tiles of channels, then rows of the batch
// thread  has a channel of a row
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "rwkv4/average.cuh"
#include "rwkv4/params.h"
#include "rwkv4/place.cuh"

namespace seqmix::rwkv4 {

template <typename Element>
struct OneStep {
    static constexpr int kThreads = rwkv4::kThreads;

    struct Smem {};

    __device__ __forceinline__ static void run(const StepParams& params, Smem&) {
        const int block = static_cast<int>(blockIdx.x);
        const int row = block / params.channel_tiles;
        const int at = (block - row * params.channel_tiles) * kThreads + thread_of_block();
        // an entry that does not exist marks a row of padding
        const int entry = params.entries_of_rows == nullptr ? row : params.entries_of_rows[row];
        if (at >= params.dim || entry < 0 || entry >= params.entries) {
            return;
        }
        const auto element = [&](const Signal& signal) {
            const auto* from = static_cast<const Element*>(signal.at);
            return to_float(from[row * signal.batch_stride + at]);
        };
        const Channel channel = load_channel(params.decay, params.bonus, at);
        Average average = {load(params.numerator, entry, at, 0.f),
                           load(params.denominator, entry, at, 0.f),
                           load(params.exponent, entry, at, 0.f), 0.f};
        const float k = element(params.k), v = element(params.v);
        const Step now(channel, average, k, v);
        move_on(average, now.carry, now.keeps, k, v);
        static_cast<Element*>(params.out.at)[row * params.out.batch_stride + at] =
            to_element<Element>(now.out);
        store(params.numerator, entry, at, average.numerator);
        store(params.denominator, entry, at, average.denominator);
        store(params.exponent, entry, at, average.exponent(channel));
    }
};

}  // namespace seqmix::rwkv4
