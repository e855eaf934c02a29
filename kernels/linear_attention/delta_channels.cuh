// What the delta rule prepares of a tile of steps, where decays are a number for each channel of the keys.
//
// Keys meet the state twice: with the decays before them where they look up what it holds, and with those
// behind them where they write to it. The first ones are written to a tile of their own, the others over
// the keys, and queries' over the queries. Scores, and what keys have in common, are sums by pairs of
// steps (gates.cuh).
//
// Two warps share a chunk: one prepares what queries need of it, and the other what its system does.
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/delta_params.h"
#include "linear_attention/delta_steps.cuh"
#include "linear_attention/features.cuh"
#include "linear_attention/gates.cuh"
#include "linear_attention/inverse.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"
#include "linear_attention/prepare.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/steps.cuh"

namespace seqmix::linear_attention {

// Writes the 16 rows of keys from `first` on, times all decays since before the chunk up to their own step.
template <int Size, typename KeyTile, typename GateTile>
__device__ __forceinline__ void fade_lookups(KeyTile& lookups, const KeyTile& keys,
                                             const GateTile& gates, int first) {
    using Element = typename KeyTile::Element;
    for_pairs<Size>([&](int column) {
        float2 product = make_float2(1.f, 1.f);
#pragma unroll 4
        for (int row = first; row < first + kChunk; ++row) {
            const float2 gate = pair_of(gates, row, column);
            const float2 key = part<Element>(pair_of(keys, row, column));
            product = make_float2(product.x * gate.x, product.y * gate.y);
            pair_of(lookups, row, column) = join<Element>(key.x * product.x, key.y * product.y);
        }
    });
}

template <typename Element_, int Size, int Count, DeltaWalk Kind>
struct DeltaChannels {
    using Element = Element_;
    using Prepare = seqmix::linear_attention::Prepare<Element, Size, Count, Gate::Channel>;
    using KeyTile = typename Prepare::KeyTile;
    using Stage = typename Prepare::Stage;
    using Scores = PairScores<Size, false>;

    static constexpr int kThreads = Prepare::kThreads;
    static constexpr int kChunks = Prepare::kChunks;
    static constexpr bool kOutputs = Kind == DeltaWalk::Outputs;
    static_assert(2 * kChunks <= kThreads / 32, "two warps prepare a chunk");
    static_assert(Scores::kScratch <= kChunk * Triangle::kStride,
                  "products of keys pass through the place of their system");

    struct Smem {
        Squares<Element, Count> scores;
        Inverses<Element, Count> inverses;
        KeyTile lookups;              // keys with all decays before them in their chunk
        float decay[kChunks][Size];   // of each chunk
        float scratch[kChunks][Scores::kScratch];
        float factors[Count];         // of outputs
        float score_units[Count];     // what scores were divided by, if kNarrow
    };

    // The warp's chunk, its first step in the tile, and what it prepares of it.
    __device__ __forceinline__ static int chunk() { return warp_of_block() % kChunks; }
    __device__ __forceinline__ static int first() { return kChunk * chunk(); }
    __device__ __forceinline__ static bool has_queries() { return warp_of_block() < kChunks; }
    __device__ __forceinline__ static bool has_keys() {
        return !has_queries() && warp_of_block() < 2 * kChunks;
    }

    // Fills what scores pass through, before the first barrier: lanes read pairs, of which one may lie behind
    // a row's last score and counts for nothing.
    __device__ __forceinline__ static void begin(Smem& smem) {
        const int thread = thread_of_block();
#pragma unroll 1
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            for (int i = thread; i < Scores::kScratch; i += kThreads) {
                smem.scratch[chunk][i] = 0.f;
            }
            for (int i = thread; i < kChunk * Triangle::kStride; i += kThreads) {
                smem.inverses.triangles[chunk].values[i] = 0.f;
            }
        }
    }

    // As DeltaSteps::Ahead.
    struct Ahead {
        float beta;
    };
    __device__ __forceinline__ static Ahead load(const DeltaParams& params, const Place& place, int n) {
        return {load_beta<Element>(params, place, n * Count + first() + lane_of_warp() % kChunk)};
    }

    // Makes what all warps need of this warp's chunk, of a tile with `rows` steps left. All threads.
    __device__ __forceinline__ static void prepare(const WalkParams& params, Smem& smem, Stage& stage,
                                                   Mode mode, const Ahead& ahead, int rows) {
        const Layer& layer = params.layer;
        const bool scored = mode == Mode::Whole && has_queries();
        KeyTile& keys = kOutputs ? stage.k : stage.q;
        KeyTile& queries = kOutputs ? stage.q : stage.k;
        if (has_queries()) {
            exponentiate(stage.gates, smem.decay[chunk()], first());
        }
        if (scored || has_keys()) {
            const int map = scored == kOutputs ? layer.query_map : layer.key_map;
            map_rows(scored ? queries : keys, static_cast<FeatureMap>(map), first(), rows - first(),
                     layer.dk);
        }
        __syncthreads();  // decays and mapped rows, before two warps read them
        Scores pairs;
        if (scored || has_keys()) {
            // rows that read, and rows that are read: of the system both are keys
            pairs.compute(kOutputs && scored ? queries : keys, kOutputs || has_keys() ? keys : queries,
                          stage.gates, first(), nullptr);
        }
        __syncthreads();  // both have read their rows, before these are overwritten
        Products products;
        if (scored) {
            if constexpr (kOutputs) {
                fade_queries<Size>(queries, stage.gates, first(), false);
            } else {
                fade_keys<Size>(queries, stage.gates, first(), layer.scale);
            }
            pairs.exchange(products, smem.scratch[chunk()]);
            store_scores(layer, smem, products);
        } else if (has_keys()) {
            fade_lookups<Size>(smem.lookups, keys, stage.gates, first());
            fade_keys<Size>(keys, stage.gates, first(), 1.f);
            pairs.exchange(products, smem.inverses.triangles[chunk()].values);
            smem.inverses.prepare(products, chunk(), ahead.beta);
        }
    }

    __device__ __forceinline__ static void store_scores(const Layer& layer, Smem& smem,
                                                        Products& scores) {
        float units[2] = {1.f, 1.f};
        fit_rows<Element>(scores, units);
        smem.scores.store(chunk(), scores);
        if (lane_column() == 0) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = first() + lane_row() + 8 * half;
                smem.score_units[at] = units[half];
                smem.factors[at] = layer.scale * units[half];
            }
        }
    }

    // As those of DeltaSteps. Keys and queries have their decays: nothing else is multiplied by them.
    __device__ __forceinline__ static const KeyTile& lookups(const Smem& smem, const KeyTile&) {
        return smem.lookups;
    }
    __device__ __forceinline__ static float2 inflow(const Smem&, int, int) {
        return make_float2(1.f, 1.f);
    }
    __device__ __forceinline__ static float2 weight(const Smem&, int, int) {
        return make_float2(1.f, 1.f);
    }
    __device__ __forceinline__ static void weigh(const Layer&, const Smem&, int,
                                                 Pair<Element> (&)[4]) {}

    template <typename State>
    __device__ __forceinline__ static void fade(const Smem& smem, int chunk, State& state,
                                                float factor) {
        state.multiply_keys(smem.decay[chunk]);
        if (kNarrow<Element> && factor != 1.f) {  // the same for the whole warp
            state.multiply_by(factor);
        }
    }

    template <typename State>
    __device__ __forceinline__ static void leave(const Layer& layer, const Place& place, Smem& smem,
                                                 State& state) {
        const float* behind = decays_behind(layer, place);
        __syncthreads();  // all have read the last chunk's decays, before they are overwritten
        for (int c = thread_of_block(); c < Size; c += kThreads) {
            smem.decay[0][c] =
                behind != nullptr && c < layer.dk
                    ? exp2_approx(exponent_of(behind[c * layer.decays.channel_stride]))
                    : 1.f;
        }
        __syncthreads();  // the decays behind the walk, before they are read
        state.multiply_keys(smem.decay[0]);
    }
};

}  // namespace seqmix::linear_attention
