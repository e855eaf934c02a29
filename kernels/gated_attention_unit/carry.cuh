// What the rows of each chunk meet: the sum of the states of the chunks before it, or if reversed behind
// it, in this order; if not causal, of all. It is stored as operands of products.
//
// grid    x: slices of kSlice value channels; y: 1; z: sequences
// block   walks over the chunks; the sum stays in registers
// warp    owns every eighth channel of z
// lane    owns two neighbouring value channels
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "gated_attention_unit/params.h"
#include "gated_attention_unit/place.cuh"
#include "gated_attention_unit/scores.cuh"

namespace seqmix::gated_attention_unit {

template <typename Element_>
struct Carry {
    using Element = Element_;
    static constexpr int kThreads = gated_attention_unit::kThreads;
    static constexpr int kPairs = 256 / kWarps;  // of a lane: dz is at most 256

    struct Smem {
        float largest[2][kWarps];
    };

    __device__ __forceinline__ static void run(const CarryParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Sequence sequence = sequence_of(layer, static_cast<int>(blockIdx.z));
        const int chunks = (sequence.steps + layer.chunk - 1) / layer.chunk;
        const int64_t size = static_cast<int64_t>(layer.dz) * layer.dv;
        const int channel = kSlice * static_cast<int>(blockIdx.x) + 2 * lane_of_warp();
        const int64_t offset = static_cast<int64_t>(warp_of_block()) * layer.dv + channel;
        // dz is a multiple of the warps, so each has as many rows
        const int rows = channel < layer.dv ? layer.dz / kWarps : 0;
        float2 sums[kPairs] = {};
        const auto for_each = [&](int64_t slot, const auto& with) {
            const int64_t first = slot * size + offset;
#pragma unroll
            for (int i = 0; i < kPairs; ++i) {
                if (i < rows) {
                    with(sums[i], first + static_cast<int64_t>(i) * kWarps * layer.dv);
                }
            }
        };
        const auto add = [&](int chunk) {
            for_each(sequence.slot(layer.chunk, chunk), [&](float2& sum, int64_t at) {
                const float2 state = *reinterpret_cast<const float2*>(params.states + at);
                sum.x += state.x;
                sum.y += state.y;
            });
        };
        const auto store = [&](int chunk) {
            const int64_t slot = sequence.slot(layer.chunk, chunk);
            float factor = 1.f;
            if constexpr (kNarrow<Element>) {
                const float unit = excess(largest(sums, smem, chunk % 2));
                factor = inverse(unit);
                if (thread_of_block() == 0) {
                    params.units[slot * gridDim.x + blockIdx.x] = unit;
                }
            }
            for_each(slot, [&](const float2& sum, int64_t at) {
                *reinterpret_cast<Pair<Element>*>(static_cast<Element*>(params.met) + at) =
                    join<Element>(sum.x * factor, sum.y * factor);
            });
        };
        if (!layer.causal) {
            for (int chunk = 0; chunk < chunks; ++chunk) {
                add(chunk);
            }
            if (chunks > 0) {
                store(0);
            }
            return;
        }
#pragma unroll 1
        for (int step = 1; step < chunks; ++step) {
            const int chunk = layer.reversed ? chunks - 1 - step : step;
            add(layer.reversed ? chunk + 1 : chunk - 1);
            store(chunk);
        }
    }

    // The largest magnitude in all threads' sums; `turn` differs from call to call.
    __device__ __forceinline__ static float largest(const float2 (&sums)[kPairs], Smem& smem,
                                                    int turn) {
        float x = 0.f;
#pragma unroll
        for (int i = 0; i < kPairs; ++i) {
            x = fmaxf(x, fmaxf(fabsf(sums[i].x), fabsf(sums[i].y)));
        }
        x = warp_max(x);
        if (lane_of_warp() == 0) {
            smem.largest[turn][warp_of_block()] = x;
        }
        __syncthreads();  // every warp's, before all are read
        for (int warp = 0; warp < kWarps; ++warp) {
            x = fmaxf(x, smem.largest[turn][warp]);
        }
        return x;
    }
};

}  // namespace seqmix::gated_attention_unit
