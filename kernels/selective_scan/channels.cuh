// What belongs to a channel and no step: D and delta_bias, and sums over steps.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "selective_scan/chunk.cuh"
#include "selective_scan/params.h"
#include "selective_scan/place.cuh"

namespace seqmix::selective_scan {

// D and delta_bias of the block's channels, read by its threads after a barrier.
template <int Channels, int Threads>
struct alignas(16) ChannelWeights {
    float skip[Channels];
    float delta_bias[Channels];

    __device__ __forceinline__ void load(const Scan& scan, const Place& place) {
        for (int i = thread_of_block(); i < Channels; i += Threads) {
            const auto load_one = [&](const Vector& vector, int dtype) {
                const bool exists = vector.at != nullptr && i < place.channels;
                const int64_t at = (int64_t{place.channel} + i) * vector.stride;
                return exists ? load_element(vector.at, at, dtype) : 0.f;
            };
            skip[i] = load_one(scan.skip, scan.skip_dtype);
            delta_bias[i] = load_one(scan.delta_bias, scan.delta_bias_dtype);
        }
    }
};

// A sum whose rounding errors are added up beside it, so that it can have any number of terms.
struct CompensatedSum {
    float sum = 0.f;
    float error = 0.f;

    __device__ __forceinline__ void add(float x) {
        const float term = __fadd_rn(x, -error);
        const float next = __fadd_rn(sum, term);
        error = __fadd_rn(__fadd_rn(next, -sum), -term);
        sum = next;
    }
};

}  // namespace seqmix::selective_scan
