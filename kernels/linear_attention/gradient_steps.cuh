// The decays of a gradient's walk that are a number a step: the same for all of the state.
//
// They multiply columns of the transposed outputs and values, and the scores in between; queries and
// keys stay as they were read.
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/steps.cuh"

namespace seqmix::linear_attention {

// The decays of a tile of steps, a number a step, as reads and writes of the state see them.
//
// In chunk `c`, `high` and `low` at i are the sums of the exponents up to step i (steps.cuh).
template <int Count>
struct alignas(16) Fading {
    float high[Count / kChunk][kChunk];
    float low[Count / kChunk][kChunk];
    float inflow[Count];  // what a read finds of the state before the chunk
    float weight[Count];  // with how much of it a write is in the state after the chunk
    float decay[4];       // of each chunk

    // Of the chunk `chunk`, whose exponents lanes 0 to 15 give; all lanes of a warp.
    __device__ __forceinline__ void scan(int chunk, float exponent, float scale) {
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
        const int lane = lane_of_warp();
        if (lane < kChunk) {
            high[chunk][lane] = high_sum;
            low[chunk][lane] = low_sum;
            inflow[kChunk * chunk + lane] = exp2_approx(high_sum + low_sum);
            weight[kChunk * chunk + lane] =
                scale * exp2_approx((high_end - high_sum) + (low_end - low_sum));
        }
        if (lane == 0) {
            decay[chunk] = exp2_approx(high_end + low_end);
        }
        __syncwarp();  // the sums of all lanes, before each reads those of other steps
    }

    // The decay from after step `from` to after step `to` of a chunk; meaningless for from > to.
    __device__ __forceinline__ float between(int chunk, int to, int from) const {
        return exp2_approx((high[chunk][to] - high[chunk][from]) +
                           (low[chunk][to] - low[chunk][from]));
    }
};

// Multiplies the columns of outputs by the numbers that `of` makes of those of the steps.
template <int Tiles, typename Of>
__device__ __forceinline__ void multiply_columns(float (&outputs)[Tiles][2][4],
                                                 const float* numbers, const Of& of) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float2 both = of_columns(numbers, half);
        const float factors[2] = {of(both.x), of(both.y)};
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                outputs[tile][half][i] *= factors[i % 2];
            }
        }
    }
}

template <typename Element_, int Size, int Tiles, int Count>
struct BySteps {
    using Element = Element_;
    using State = seqmix::linear_attention::State<Element, Size, Tiles>;
    using Params = GradientWalkParams;

    struct Stage {};
    struct Smem {
        Squares<Element, Count> scores;
        Fading<Count> fading;
        float score_units[Count];  // what scores were divided by, if kNarrow
    };
    // The decay of all chunks so far.
    struct Passed {
        float decay = 1.f;
        __device__ __forceinline__ explicit Passed(Smem&) {}
    };

    // The exponent of this lane's step in the warp's chunk of the n-th tile, read ahead.
    using Ahead = float;
    __device__ __forceinline__ static Ahead load(const Params& params, const GradientPlace& place,
                                                 int n) {
        const Layer& layer = params.layer;
        const int step = n * Count + kChunk * warp_of_block() + lane_of_warp() % kChunk;
        if (layer.decays.at == nullptr || step < place.first_decay(params) || step >= place.steps) {
            return 0.f;
        }
        return exponent_of(decays_at(layer, place, step)[0]);
    }

    __device__ __forceinline__ static void fetch(const Params&, const GradientPlace&, Stage&, int) {}

    // Of the warp's chunk: stores its decays, and its scores with them; `strict` without those of a step
    // with itself.
    __device__ __forceinline__ static void prepare(const Params& params, Smem& smem,
                                                   Products& scores, int chunk, Ahead exponent,
                                                   bool strict) {
        smem.fading.scan(chunk, exponent, params.weight);
        for_each_score(scores, [&](float& score, int i, int j) {
            // as in the walk of the other gradient, so that pairs are rounded alike
            const float factor =
                params.weight * params.layer.scale * smem.fading.between(chunk, i, j);
            score = j < i || (j == i && !strict) ? score * factor : 0.f;
        });
        float units[2] = {1.f, 1.f};
        fit_rows<Element>(scores, units);
        smem.scores.store(chunk, scores);
        if (lane_column() == 0) {
            smem.score_units[kChunk * chunk + lane_row()] = units[0];
            smem.score_units[kChunk * chunk + lane_row() + 8] = units[1];
        }
    }

    // By what step `i` of a chunk multiplies the value of step `j`.
    __device__ __forceinline__ static float score(const Smem& smem, int chunk, int i, int j) {
        const float unit = kNarrow<Element> ? smem.score_units[kChunk * chunk + i] : 1.f;
        return unit * smem.scores.number(chunk, i, j);
    }

    // What can be done before queries read the state before a chunk, when registers are free.
    struct Faded {};
    __device__ __forceinline__ static void fade(const Params&, const Smem&, const Stage&, int,
                                                typename State::Values&, Faded&) {}

    // Completes the outputs of the warp's channels of a chunk, which so far are what queries read of the
    // state before it; and takes values and that state to the chunk's end. The state was divided by
    // `unit`.
    __device__ __forceinline__ static void apply(const Params& params, Smem& smem, int chunk,
                                                 float unit,
                                                 const Faded&,
                                                 typename State::Outputs& outputs,
                                                 typename State::Values& values, State& state,
                                                 Passed& passed) {
        const int first = kChunk * chunk;
        multiply_columns(outputs, smem.fading.inflow + first,
                         [&](float inflow) { return inflow * (unit * params.layer.scale); });
        if constexpr (kNarrow<Element>) {
            multiply_columns(outputs, smem.score_units + first,
                             [](float power) { return inverse(power); });
        }
        smem.scores.multiply(outputs, values, chunk);
        if constexpr (kNarrow<Element>) {
            multiply_columns(outputs, smem.score_units + first,
                             [](float power) { return power; });
        }
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            weigh_columns<Element>(values[tile], smem.fading.weight + first);
        }
        const float decay = smem.fading.decay[chunk];
        passed.decay *= decay;
        if (decay * unit != 1.f) {  // the same for all threads but for a warp's unit
            state.multiply_by(decay * unit);
        }
    }

    // The decay of a chunk in a lane's row of a tile of the transposed state.
    __device__ __forceinline__ static float decay(const Smem& smem, int chunk, const Faded&, int,
                                                  int) {
        return smem.fading.decay[chunk];
    }

    // The decay of all segments before this one, by Mode::Read.
    __device__ __forceinline__ static float before(const Params& params,
                                                   const GradientPlace& place) {
        float decay = 1.f;
        if (params.layer.decays.at != nullptr) {
            for (int i = 1; i <= place.segment; ++i) {
                const int64_t slot = place.first_slot + place.segments - i;
                decay *= params.decays[slot * params.layer.heads + place.head];
            }
        }
        return decay;
    }

    // Completes outputs by Mode::Read: the state, divided by `unit`, is that of the walk's start. Decays
    // multiply what is read of it, so that they make it too small for no operand.
    __device__ __forceinline__ static void read(const Params& params, const Smem& smem, int chunk,
                                                float unit,
                                                typename State::Outputs& outputs, Passed& passed) {
        multiply_columns(outputs, smem.fading.inflow + kChunk * chunk,
                         [&](float inflow) {
                             return inflow * (passed.decay * (unit * params.layer.scale));
                         });
        passed.decay *= smem.fading.decay[chunk];
    }

    // Takes the state and the normaliser's past the decay behind the walk.
    template <typename Normalized>
    __device__ __forceinline__ static void leave(const Params& params, const GradientPlace& place,
                                                 State& state,
                                                 typename Normalized::Smem& normalized) {
        const float decay =
            exp2_approx(exponent_of(*decays_at(params.layer, place, place.steps)));
        state.multiply_by(decay);
        Normalized::multiply_by(normalized, decay);
    }

    // Stores the decay of all chunks, for the passing of states.
    __device__ __forceinline__ static void store(const Params& params, const GradientPlace& place,
                                                 const Smem&, const Passed& passed) {
        if (place.channel == 0 && thread_of_block() == 0) {
            params.decays[place.slot * params.layer.heads + place.head] = passed.decay;
        }
    }
};

}  // namespace seqmix::linear_attention
