// The normaliser in the walks of gradients: a channel of the layer's values that is 1 at each step, and
// the factor that each output was multiplied by.
//
// The gradient of what a step read is that of its output times its factor, and in the normaliser's
// channel a number (normalizer_gradient.cuh). So scores are multiplied by the factor of their row or
// column, whichever is the gradient of an output, and the number is added; reads or writes of the state
// likewise. Of the state, the normaliser's channel is z: a number for each row of the transposed one.
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/values.cuh"

namespace seqmix::linear_attention {

// `Exists` says whether the kernel takes layers with one.
template <typename Element_, int Size, int Tiles, int Count, bool Exists>
struct Normalized {
    using Element = Element_;
    using State = seqmix::linear_attention::State<Element, Size, Tiles>;
    using Values = seqmix::linear_attention::Values<Element, Tiles, Count>;
    using Params = GradientWalkParams;

    struct alignas(16) Smem {
        float factors[Count];    // of the gradient of each step's output
        float gradients[Count];  // its channel of the normaliser
        float units[4];          // of each chunk: what factors of keys are divided by, if kNarrow
        // The normaliser's part of the state: in shared memory, where it takes no registers. The first
        // lane of a quad writes that of its rows.
        float z[Values::kWidth];
    };

    // Whether the state has the normaliser's channel, and whether factors multiply queries or keys.
    __device__ __forceinline__ static bool asked(const Params& params) {
        return Exists && params.normalize != 0;
    }
    __device__ __forceinline__ static bool factored(const Params& params) {
        return Exists && params.factors.at != nullptr;
    }

    // The channel of the block that a lane has in a row of a tile of the transposed state.
    __device__ __forceinline__ static int channel(int tile, int row) {
        return Values::warp_channel() + 16 * tile + 8 * row + lane_row();
    }

    // The factor and the gradient of this lane's step in the warp's chunk of the n-th tile.
    __device__ __forceinline__ static float2 load(const Params& params, const GradientPlace& place,
                                                 int n) {
        const int step = n * Count + kChunk * warp_of_block() + lane_of_warp() % kChunk;
        const int first = of_keys(params) ? place.first_key(params) : place.lead;
        const int end = of_keys(params) ? place.steps : place.queries_end(params);
        if (!factored(params) || step < first || step >= end) {
            return make_float2(0.f, 0.f);
        }
        const float2 both =
            *reinterpret_cast<const float2*>(row_of<const float>(params.factors, place, step));
        return make_float2(both.x * params.factor_scale, both.y * params.factor_scale);
    }

    // Stores the warp's.
    __device__ __forceinline__ static void prepare(const Params& params, Smem& smem, int chunk,
                                                   float2 both) {
        if (!factored(params)) {
            return;
        }
        const int first = kChunk * chunk;
        if (lane_of_warp() < kChunk) {
            smem.factors[first + lane_of_warp()] = both.x;
            smem.gradients[first + lane_of_warp()] = both.y;
        }
        if constexpr (kNarrow<Element>) {
            const float largest = fminf(fmaxf(warp_max(both.x), 0x1p-40f), 0x1p40f);
            if (lane_of_warp() == 0) {
                smem.units[chunk] = power_above(largest);
            }
        }
        __syncwarp();  // factors of all lanes, before each reads them
    }

    // Completes the scores of the warp's chunk.
    __device__ __forceinline__ static void score(const Params& params, const Smem& smem,
                                                 Products& scores, int chunk) {
        if (!factored(params)) {
            return;
        }
        for_each_score(scores, [&](float& score, int i, int j) {
            const int step = kChunk * chunk + (params.factored_keys != 0 ? j : i);
            score *= smem.factors[step];
            if (asked(params)) {
                score += smem.gradients[step];
            }
        });
    }

    // Completes what the queries of a chunk read of the state before it. That was divided by `unit`, and z
    // was not.
    __device__ __forceinline__ static void read(const Params& params, const Smem& smem, int chunk,
                                                float unit, typename State::Outputs& outputs) {
        const bool of_queries = factored(params) && params.factored_keys == 0;
        if (!of_queries && !asked(params)) {
            return;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float2 factors = make_float2(1.f, 1.f);
            float2 ones = make_float2(1.f, 1.f);
            if (of_queries) {
                factors = of_columns(smem.factors + kChunk * chunk, half);
                ones = of_columns(smem.gradients + kChunk * chunk, half);
            }
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float& output = outputs[tile][half][i];
                    output *= i % 2 == 0 ? factors.x : factors.y;
                    if (asked(params)) {
                        output += (i % 2 == 0 ? ones.x : ones.y) *
                                  (smem.z[channel(tile, i / 2)] * inverse(unit));
                    }
                }
            }
        }
    }

    // Takes z to the chunk's end, with decay(tile, row), and adds the values, which have decayed.
    template <typename Decay>
    __device__ __forceinline__ static void pass(const Params& params, Smem& smem, int chunk,
                                                const typename State::Values& values,
                                                const Decay& decay) {
        if (!asked(params)) {
            return;
        }
        __syncwarp();  // all lanes have read z, before it is overwritten
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            float sums[2] = {};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float2 pair = part<Element>(values[tile][i]);
                float2 ones = make_float2(1.f, 1.f);
                if (of_keys(params)) {
                    ones = of_columns(smem.gradients + kChunk * chunk, i / 2);
                }
                sums[i % 2] += pair.x * ones.x + pair.y * ones.y;
            }
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const float sum = quad_sum(sums[row]);
                if (lane_column() == 0) {
                    float& z = smem.z[channel(tile, row)];
                    z = z * decay(tile, row) + sum;
                }
            }
        }
        __syncwarp();  // z of all rows, before each lane reads it
    }

    // Multiplies values by the factors of their keys, but for a power of two.
    __device__ __forceinline__ static void weigh(const Params& params, const Smem& smem, int chunk,
                                                 typename State::Values& values) {
        if (!of_keys(params)) {
            return;
        }
        const float unit = unit_of(params, smem, chunk);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 factors = of_columns(smem.factors + kChunk * chunk, half);
            const float left = factors.x * inverse(unit);
            const float right = factors.y * inverse(unit);
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; ++i) {
                    const float2 pair = part<Element>(values[tile][i]);
                    values[tile][i] = join<Element>(pair.x * left, pair.y * right);
                }
            }
        }
    }

    // Divides the state by that power, before such values are added; and multiplies it again.
    __device__ __forceinline__ static void divide(const Params& params, const Smem& smem, int chunk,
                                                  State& state) {
        const float unit = unit_of(params, smem, chunk);
        if (unit != 1.f) {  // the same for the whole warp
            state.multiply_by(inverse(unit));
        }
    }
    __device__ __forceinline__ static void multiply(const Params& params, const Smem& smem,
                                                    int chunk, State& state) {
        const float unit = unit_of(params, smem, chunk);  // read again: kept it would take a register
        if (unit != 1.f) {
            state.multiply_by(unit);
        }
    }

    // z of zeros.
    __device__ __forceinline__ static void clear(Smem& smem) {
#pragma unroll
        for (int i = 0; i < 2 * Tiles; ++i) {
            if (Exists && lane_column() == 0) {
                smem.z[channel(i / 2, i % 2)] = 0.f;
            }
        }
    }

    // z before the walk, or of slot `slot` of the workspace if states lie there.
    __device__ __forceinline__ static void load_start(const Params& params,
                                                      const GradientPlace& place, Smem& smem,
                                                      int64_t slot) {
        const int64_t head = slot * params.layer.heads + place.head;
        for_each_row(params, place, [&](int own, int number) {
            if (params.z_segments != nullptr) {
                smem.z[own] = params.z_segments[head * params.layer.dv + number];
            } else if (params.initial_z.at != nullptr) {
                smem.z[own] = *state_of(params.initial_z, place, number);
            }
        });
    }

    // Multiplies z of the warp's rows.
    __device__ __forceinline__ static void multiply_by(Smem& smem, float factor) {
        if constexpr (!Exists) {
            return;
        }
        __syncwarp();  // z is written, before all lanes read it
        float products[2 * Tiles];
#pragma unroll
        for (int i = 0; i < 2 * Tiles; ++i) {
            products[i] = smem.z[channel(i / 2, i % 2)] * factor;
        }
        __syncwarp();  // all lanes have read z, before it is overwritten
#pragma unroll
        for (int i = 0; i < 2 * Tiles; ++i) {
            if (lane_column() == 0) {
                smem.z[channel(i / 2, i % 2)] = products[i];
            }
        }
    }

    // Stores z behind the walk.
    __device__ __forceinline__ static void store_end(const Params& params,
                                                     const GradientPlace& place,
                                                     const Smem& smem) {
        if (params.last_z.at != nullptr) {
            for_each_row(params, place, [&](int own, int number) {
                *state_of(params.last_z, place, number) = smem.z[own];
            });
        }
    }

    // Stores z where index `head` of [.., dv] in `to` says.
    __device__ __forceinline__ static void store(const Params& params, const GradientPlace& place,
                                                 const Smem& smem, float* to, int64_t head) {
        for_each_row(params, place, [&](int own, int number) {
            to[head * params.layer.dv + number] = smem.z[own];
        });
    }

private:
    // Whether keys are the gradients of outputs.
    __device__ __forceinline__ static bool of_keys(const Params& params) {
        return factored(params) && params.factored_keys != 0;
    }

    // The power of two that factors of a chunk's keys are divided by.
    __device__ __forceinline__ static float unit_of(const Params& params, const Smem& smem,
                                                    int chunk) {
        return kNarrow<Element> && of_keys(params) ? smem.units[chunk] : 1.f;
    }

    // Calls with(channel of the block, channel of the head) for the rows of a quad that exist, on its first
    // lane, if there is a normaliser.
    template <typename With>
    __device__ __forceinline__ static void for_each_row(const Params& params,
                                                        const GradientPlace& place,
                                                        const With& with) {
        if (!asked(params) || lane_column() != 0) {
            return;
        }
#pragma unroll
        for (int i = 0; i < 2 * Tiles; ++i) {
            const int own = channel(i / 2, i % 2);
            if (place.channel + own < params.layer.dv) {
                with(own, place.channel + own);
            }
        }
    }
};

}  // namespace seqmix::linear_attention
