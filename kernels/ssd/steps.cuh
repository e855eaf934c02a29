// The step sizes of a chunk and the decays between its steps, computed by one warp.
//
// Between the steps j < i the state decays by exp(A (dt'[j+1] + ... + dt'[i])), a power of two whose
// exponent is the difference of two cumulative sums. Differences of large sums would lose what a
// strong decay leaves behind it: after one step of exponent -100000, sums of f32 are off by 0.004.
// So each exponent is limited to what f32 can tell from 0, and split: `high` is a multiple of 1/64,
// whose sums and differences are exact, and `low` the rest, below 1/128, whose sums stay small.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/pointwise.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "ssd/place.cuh"

namespace seqmix::ssd {

// The decay from after step j to after step i; meaningless for j > i.
__device__ __forceinline__ float between(float high_i, float low_i, float high_j, float low_j) {
    return exp2_approx((high_i - high_j) + (low_i - low_j));
}

// The steps of a chunk as one head sees them. Steps behind the sequence's end have size 0.
template <int Chunk>
struct alignas(16) Steps {
    float size[Chunk];     // dt'
    float high[Chunk];     // the exponent of the decay from before the chunk to after a step, in
    float low[Chunk];      // powers of two: the sum of both
    float inflow[Chunk];   // 2 to that power: what is left of the state before the chunk
    float weight[Chunk];   // dt' times the decay from the step to the chunk's end: with how much of
                           // it an input enters the state
    // For all of the chunk:
    float decay;           // of the state; with kNarrow divided by `unit`
    float unit;            // what products with weights are to be multiplied by, see range.cuh
    // With kNarrow, for bounds:
    float largest;         // size
    float growth;          // no less than any decay between two steps

    // The decay from after step `row` to the chunk's end.
    __device__ __forceinline__ float outflow(int row) const {
        return between(high[Chunk - 1], low[Chunk - 1], high[row], low[row]);
    }

    static_assert(Chunk <= 64, "each lane has two neighbouring steps");
};

// What a lane reads of dt: two neighbouring steps. Lanes behind a shorter chunk read zeros.
struct StepInputs {
    float values[2];
};

// Reads dt of the chunk's steps that begin at `step`, of which there are `rows`.
template <typename Element>
__device__ __forceinline__ StepInputs load_steps(const Layer& layer, const Slice& slice, int step,
                                                 int rows) {
    StepInputs inputs;
    const int first = 2 * lane_of_warp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const bool valid = slice.channels > 0 && first + i < min(rows, kChunk<Element>);
        inputs.values[i] =
            valid ? load(row_of<Element>(layer.dt, step + first + i, slice.head)) : 0.f;
    }
    return inputs;
}

// x within limits; a NaN stays one.
__device__ __forceinline__ float limit(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

// dt', from dt.
__device__ __forceinline__ float step_size(const Layer& layer, float dt, float bias) {
    const float biased = dt + bias;
    return limit(layer.softplus != 0 ? softplus(biased) : biased, layer.dt_min, layer.dt_max);
}

// The derivative of dt' with respect to dt: 0 where a limit holds.
__device__ __forceinline__ float step_size_slope(const Layer& layer, float dt, float bias) {
    const float biased = dt + bias;
    const float size = layer.softplus != 0 ? softplus(biased) : biased;
    const float slope = layer.softplus != 0 ? sigmoid(biased) : 1.f;
    return size < layer.dt_min || size > layer.dt_max ? 0.f : slope;
}

// The sum of this lane's number and those of all lanes before it, in an order that depends on the
// lane alone.
__device__ __forceinline__ float warp_prefix_sum(float x) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const float before = __shfl_up_sync(kAllLanes, x, distance);
        x += lane_of_warp() >= distance ? before : 0.f;
    }
    return x;
}

// Fills `steps` from the inputs, of which `rows` are steps; all lanes of a warp.
template <typename Element>
__device__ __forceinline__ void scan_steps(Steps<kChunk<Element>>& steps, const Layer& layer,
                                           const Slice& slice, const StepInputs& inputs,
                                           int rows) {
    constexpr bool Narrow = kNarrow<Element>;
    constexpr int kSteps = kChunk<Element>;
    // 2^-160 is 0 in f32 and no factor brings it back
    constexpr float kLargestExponent = 160.f;
    constexpr float kUnits = 64.f;

    const bool exists = slice.channels > 0;
    const float rate = exists ? layer.a[slice.head] * kLog2E : 0.f;
    const float bias = exists && layer.dt_bias != nullptr ? layer.dt_bias[slice.head] : 0.f;
    const int first = 2 * lane_of_warp();
    float size[2];
    float high[2];
    float low[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const bool valid = exists && first + i < min(rows, kSteps);
        size[i] = valid ? step_size(layer, inputs.values[i], bias) : 0.f;
        const float exponent = limit(size[i] * rate, -kLargestExponent, kLargestExponent);
        high[i] = rintf(exponent * kUnits) / kUnits;
        low[i] = exponent - high[i];
    }
    const float high_end = warp_prefix_sum(high[0] + high[1]);
    const float low_end = warp_prefix_sum(low[0] + low[1]);
    const float total_high = __shfl_sync(kAllLanes, high_end, 31);
    const float total_low = __shfl_sync(kAllLanes, low_end, 31);
    high[0] = high_end - high[1];  // exact
    low[0] = low_end - low[1];
    high[1] = high_end;
    low[1] = low_end;

    float weight[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        weight[i] = size[i] * between(total_high, total_low, high[i], low[i]);
    }
    float unit = 1.f;
    if constexpr (Narrow) {
        // weights above 1 could take an input out of range
        const float largest = warp_max(fmaxf(weight[0], weight[1]));
        unit = largest > 1.f ? power_above(largest) : 1.f;
        weight[0] *= inverse(unit);
        weight[1] *= inverse(unit);
        const float largest_size = warp_max(fmaxf(size[0], size[1]));
        if (lane_of_warp() == 0) {
            steps.largest = largest_size;
            // sizes are not negative, so that all exponents have the sign of A
            steps.growth = exp2_approx(fmaxf(total_high + total_low, 0.f));
        }
    }
    const auto store = [&](float* to, const float (&pair)[2]) {
        if (first < kSteps) {
            *reinterpret_cast<float2*>(to + first) = make_float2(pair[0], pair[1]);
        }
    };
    const float inflow[2] = {exp2_approx(high[0] + low[0]), exp2_approx(high[1] + low[1])};
    store(steps.size, size);
    store(steps.high, high);
    store(steps.low, low);
    store(steps.inflow, inflow);
    store(steps.weight, weight);
    if (lane_of_warp() == 0) {
        steps.decay = exp2_approx(total_high + total_low) * (Narrow ? inverse(unit) : 1.f);
        steps.unit = unit;
    }
}

}  // namespace seqmix::ssd
