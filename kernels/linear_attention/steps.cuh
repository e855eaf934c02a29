// The decays of a tile of steps where they are a number a step, the same for all channels.
//
// Between the steps j < i of a chunk the state decays by exp(g[j+1] + ... + g[i]), a power of two whose
// exponent is the difference of two sums that begin with the chunk. Differences of large sums would
// lose what a strong decay leaves behind it, so each exponent is limited to what f32 can tell from 0,
// and split: `high` is a multiple of 1/64, whose sums and differences are exact, and `low` the rest,
// below 1/128, whose sums stay small.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "linear_attention/place.cuh"

namespace seqmix::linear_attention {

// 2^-160 is 0 in f32 and no factor brings it back.
constexpr float kLargestExponent = 160.f;

// The logarithm of a decay as an exponent of 2; a NaN stays one.
__device__ __forceinline__ float exponent_of(float decay) {
    const float exponent = decay * kLog2E;
    return exponent < -kLargestExponent  ? -kLargestExponent
           : exponent > kLargestExponent ? kLargestExponent
                                         : exponent;
}

// Whether a walk meets each decay a step late: a reversed one, where it lies between a step and the
// one before it in time. With a bonus no step's own decay lies between it and others, in either order.
__device__ __forceinline__ bool decays_late(const Layer& layer) {
    return layer.reversed != 0 && layer.bonus == nullptr;
}

// The address of the block's decays before the n-th step of the walk: those of the same step, or if
// they come late those of the step before it in the walk. Null: nothing decays.
__device__ __forceinline__ const float* decays_of(const Layer& layer, const Place& place, int n) {
    const bool late = decays_late(layer);
    if (layer.decays.at == nullptr || n >= place.steps || (late && place.first && n == 0)) {
        return nullptr;
    }
    const int step = place.start + place.direction * n + late;
    return layer.decays.at + static_cast<int>(blockIdx.z) * layer.decays.batch_stride +
           step * layer.decays.step_stride + place.head * layer.decays.head_stride;
}

// As steps of the walk count, the decay behind its last step: that of the first one, if they come late.
__device__ __forceinline__ const float* decays_behind(const Layer& layer, const Place& place) {
    if (layer.decays.at == nullptr || !decays_late(layer) || !place.last || place.steps <= 0) {
        return nullptr;
    }
    const int step = place.start + place.direction * (place.steps - 1);
    return layer.decays.at + static_cast<int>(blockIdx.z) * layer.decays.batch_stride +
           step * layer.decays.step_stride + place.head * layer.decays.head_stride;
}

// A number, 0 if there is none.
__device__ __forceinline__ float load_exponent(const float* decay) {
    return decay == nullptr ? 0.f : exponent_of(*decay);
}

// A tile of `Count` steps; those behind the segment's end keep everything.
template <int Count>
struct alignas(16) Steps {
    float high[Count];    // the exponent of the decay from before the chunk to after a step, in powers
    float low[Count];     // of two: the sum of both
    float inflow[Count];  // 2 to that power: what is left of the state before the chunk
    float weight[Count];  // the decay from the step to the chunk's end: with how much of it a value
                          // enters the state
    float decay[4];       // of each chunk

    // Of the chunk `chunk`, whose exponents lanes 0 to 15 give; all lanes of a warp.
    __device__ __forceinline__ void scan(int chunk, float exponent) {
        constexpr float kUnits = 64.f;
        float high_sum = rintf(exponent * kUnits) / kUnits;
        float low_sum = exponent - high_sum;
#pragma unroll
        for (int distance = 1; distance < kChunk; distance *= 2) {
            const float high_before = __shfl_up_sync(kAllLanes, high_sum, distance, kChunk);
            const float low_before = __shfl_up_sync(kAllLanes, low_sum, distance, kChunk);
            if (lane_of_warp() % kChunk >= distance) {
                high_sum += high_before;
                low_sum += low_before;
            }
        }
        const float high_end = __shfl_sync(kAllLanes, high_sum, kChunk - 1);
        const float low_end = __shfl_sync(kAllLanes, low_sum, kChunk - 1);
        if (lane_of_warp() < kChunk) {
            const int at = kChunk * chunk + lane_of_warp();
            high[at] = high_sum;
            low[at] = low_sum;
            inflow[at] = exp2_approx(high_sum + low_sum);
            weight[at] = exp2_approx((high_end - high_sum) + (low_end - low_sum));
        }
        if (lane_of_warp() == 0) {
            decay[chunk] = exp2_approx(high_end + low_end);
        }
    }

    // The decay from after step `j` to after step `i` of a chunk; meaningless for j > i.
    __device__ __forceinline__ float between(int i, int j) const {
        return exp2_approx((high[i] - high[j]) + (low[i] - low[j]));
    }
};

}  // namespace seqmix::linear_attention
