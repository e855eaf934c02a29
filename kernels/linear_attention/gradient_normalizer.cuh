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

template <typename Element_, int Size, int Tiles, int Count>
struct Normalized {
    using Element = Element_;
    using State = seqmix::linear_attention::State<Element, Size, Tiles>;
    using Values = seqmix::linear_attention::Values<Element, Tiles, Count>;
    using Params = GradientWalkParams;

    struct alignas(16) Smem {
        float factors[Count];    // of the gradient of each step's output
        float gradients[Count];  // its channel of the normaliser
        float units[4];          // of each chunk: what factors of keys are divided by, if kNarrow
    };

    // The normaliser's part of the state, of this lane's rows.
    float z[Tiles][2];

    // The factor and the gradient of this lane's step in the warp's chunk of the n-th tile, read ahead.
    using Ahead = float2;
    __device__ __forceinline__ static Ahead load(const Params& params, const GradientPlace& place,
                                                 int n) {
        const int step = n * Count + kChunk * warp_of_block() + lane_of_warp() % kChunk;
        if (params.factors.at == nullptr || step < place.lead || step >= place.steps) {
            return make_float2(0.f, 0.f);
        }
        return *reinterpret_cast<const float2*>(row_of<const float>(params.factors, place, step));
    }

    // Stores the warp's, and completes its scores with them; all lanes of a warp.
    __device__ __forceinline__ static void prepare(const Params& params, Smem& smem,
                                                   Products& scores, int chunk, Ahead ahead) {
        if (params.factors.at == nullptr) {
            return;
        }
        const int first = kChunk * chunk;
        if (lane_of_warp() < kChunk) {
            smem.factors[first + lane_of_warp()] = ahead.x;
            smem.gradients[first + lane_of_warp()] = ahead.y;
        }
        if constexpr (kNarrow<Element>) {
            const float largest = fminf(fmaxf(warp_max(ahead.x), 0x1p-40f), 0x1p40f);
            if (lane_of_warp() == 0) {
                smem.units[chunk] = power_above(largest);
            }
        }
        __syncwarp();  // factors of all lanes, before each reads them
        for_each_score(scores, [&](float& score, int i, int j) {
            const int step = first + (params.factored_keys != 0 ? j : i);
            score *= smem.factors[step];
            if (params.normalize != 0) {
                score += smem.gradients[step];
            }
        });
    }

    // Completes what the queries of a chunk read of the state before it, which was divided by `unit`.
    __device__ __forceinline__ void read(const Params& params, const Smem& smem, int chunk, float unit,
                                         typename State::Outputs& outputs) const {
        const bool of_queries = params.factors.at != nullptr && params.factored_keys == 0;
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
                    if (params.normalize != 0) {
                        output += (i % 2 == 0 ? ones.x : ones.y) * (z[tile][i / 2] * inverse(unit));
                    }
                }
            }
        }
    }

    // Adds the values of a chunk to z, which has decayed, and then multiplies them by the factors of
    // their keys, but for the power of two that is returned.
    __device__ __forceinline__ float write(const Params& params, const Smem& smem, int chunk,
                                           typename State::Values& values) {
        const bool of_keys = params.factors.at != nullptr && params.factored_keys != 0;
        if (params.normalize != 0) {
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                float sums[2] = {};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 pair = part<Element>(values[tile][i]);
                    float2 ones = make_float2(1.f, 1.f);
                    if (of_keys) {
                        ones = of_columns(smem.gradients + kChunk * chunk, i / 2);
                    }
                    sums[i % 2] += pair.x * ones.x + pair.y * ones.y;
                }
                z[tile][0] += quad_sum(sums[0]);
                z[tile][1] += quad_sum(sums[1]);
            }
        }
        if (!of_keys) {
            return 1.f;
        }
        const float unit = kNarrow<Element> ? smem.units[chunk] : 1.f;
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
        return unit;
    }

    // Calls with(number of z, its channel) for each that exists; four lanes have the same.
    template <typename With>
    __device__ __forceinline__ void for_each(const Params& params, const GradientPlace& place,
                                             const With& with) {
        const int channel = place.channel + Values::warp_channel() + lane_row();
#pragma unroll
        for (int i = 0; i < 2 * Tiles; ++i) {
            const int row = channel + 16 * (i / 2) + 8 * (i % 2);
            if (row < params.layer.dv) {
                with(z[i / 2][i % 2], row);
            }
        }
    }

    // z before the walk, or of slot `slot` of the workspace if states lie there.
    __device__ __forceinline__ void load_start(const Params& params, const GradientPlace& place,
                                               int64_t slot) {
        if (params.normalize == 0) {
            return;
        }
        if (params.z_segments != nullptr) {
            const int64_t head = slot * params.layer.heads + place.head;
            for_each(params, place, [&](float& number, int row) {
                number = params.z_segments[head * params.layer.dv + row];
            });
        } else if (params.initial_z.at != nullptr) {
            const float* from = state_of(params.initial_z, place, 0);
            for_each(params, place, [&](float& number, int row) {
                number = from[row * params.initial_z.value_stride];
            });
        }
    }

    // Stores z after the walk, or in the workspace.
    __device__ __forceinline__ void store_end(const Params& params, const GradientPlace& place,
                                              bool segments) {
        if (params.normalize == 0 || lane_column() != 0) {
            return;
        }
        if (segments) {
            const int64_t head = place.slot * params.layer.heads + place.head;
            for_each(params, place, [&](float number, int row) {
                params.z_segments[head * params.layer.dv + row] = number;
            });
        } else if (params.last_z.at != nullptr) {
            float* to = state_of(params.last_z, place, 0);
            for_each(params, place, [&](float number, int row) {
                to[row * params.last_z.value_stride] = number;
            });
        }
    }
};

}  // namespace seqmix::linear_attention
