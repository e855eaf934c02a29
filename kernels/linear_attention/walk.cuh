// Linear attention for every GPU since Ampere: a block walks over a segment of a sequence, for a slice
// of a head's channels of the values.
//
// grid    x: slices, head by head; y: segments; z: sequences
// block   takes a tile of Count steps at a time, while the next one is on its way
// warp    prepares a chunk of 16 steps of the tile by itself: maps its queries and keys, and computes
//         their scores. Then it walks over all chunks of the tile for 16 * Tiles channels, whose state
//         stays in registers, without waiting for another warp
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
//
// All products of a walk are transposed: a row for each channel of the values, and a column for each
// step or channel of the keys. With S the state before a chunk, P the decays since then,
//
//     O^T = S^T (Q P)^T + V^T A^T,   S^T = S^T P_n + V^T (K P_n / P),   A = Q K^T, decayed
//
// where P, a number a step, multiplies columns of O^T and V^T and not Q and K.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"
#include "linear_attention/prepare.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/values.cuh"

namespace seqmix::linear_attention {

template <typename Element_, int Size, int Tiles, int Count, int Stages, Gate Kind>
struct Walk {
    using Element = Element_;
    using State = seqmix::linear_attention::State<Element, Size, Tiles>;
    using Values = seqmix::linear_attention::Values<Element, Tiles, Count>;
    using Prepare = seqmix::linear_attention::Prepare<Element, Size, Count, Kind>;

    static constexpr int kThreads = Prepare::kThreads;
    static constexpr int kChunks = Prepare::kChunks;
    static_assert(Stages == 1 || Stages == 2, "a tile, and perhaps the next one");

    struct Stage {
        typename Prepare::Stage keys;
        Values v;  // and then outputs; a warp writes its own channels only
    };
    struct Smem {
        Stage stages[Stages];
        typename Prepare::Smem prepared;
    };

    __device__ __forceinline__ static void run(const WalkParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Place place = place_of_block(layer, Values::kWidth);
        const Mode mode = static_cast<Mode>(params.mode);
        // behind the last segment of a walk is none that waits for its state
        if (!place.exists || (mode == Mode::States && place.last)) {
            return;
        }
        const int tiles = (place.steps + Count - 1) / Count;
        float exponent = 0.f;  // of this lane's step in the chunk that the warp will prepare
        Prepare::begin(params, place, mode, smem.prepared);
        if (tiles > 0) {
            fetch(layer, place, smem.stages[0], mode, 0);
            exponent = Prepare::load(layer, place, 0);
        }
        State state;
        state.clear();
        load_start(params, place, mode, state);

#pragma unroll 1
        for (int n = 0; n < tiles; ++n) {
            Stage& stage = smem.stages[n % Stages];
            const int rows = place.steps - n * Count;
            wait_copies<0>();
            // the tile has landed for all warps, before they read it; and all have read the one before
            // it, its scores and its decays, before these are overwritten
            __syncthreads();
            if (Stages == 2 && n + 1 < tiles) {
                fetch(layer, place, smem.stages[(n + 1) % Stages], mode, n + 1);
            }
            Prepare::run(params, smem.prepared, stage.keys, mode, exponent, rows);
            exponent = Prepare::load(layer, place, (n + 1) * Count);
            __syncthreads();  // scores, decays and mapped keys of all warps, before each reads them
            if (params.normalize != 0) {
                Prepare::normalize(params, place, smem.prepared, stage.keys, mode, n * Count);
            }
#pragma unroll 1
            for (int chunk = 0; chunk < kChunks && chunk * kChunk < rows; ++chunk) {
                walk(params, place, mode, smem.prepared, stage, state, n, chunk);
                Prepare::pass(smem.prepared, mode, chunk);
            }
            if (Stages == 1 && n + 1 < tiles) {
                __syncthreads();  // all have read the tile, before the next one overwrites it
                fetch(layer, place, stage, mode, n + 1);
            }
        }
        // found again, and not kept in registers meanwhile
        const Place end = place_of_block(layer, Values::kWidth);
        __syncthreads();  // all have read the last chunk's decays, before they are overwritten
        Prepare::find_end(layer, end, smem.prepared);
        __syncthreads();  // decays behind the walk, and z, before they are read
        Prepare::end(params, end, mode, smem.prepared);
        store_end(params, end, mode, smem.prepared, state);
    }

    // Starts the copies of the n-th tile.
    __device__ __forceinline__ static void fetch(const Layer& layer, const Place& place,
                                                 Stage& stage, Mode mode, int n) {
        Prepare::fetch(layer, place, stage.keys, mode, n * Count);
        if (Prepare::updates(mode)) {
            stage.v.template fetch<kThreads>(layer, place, n * Count);
        }
        commit_copies();
    }

    // Walks over a chunk of the n-th tile, for the warp's channels.
    __device__ __forceinline__ static void walk(const WalkParams& params, const Place& place,
                                                Mode mode, const typename Prepare::Smem& smem,
                                                Stage& stage, State& state, int n, int chunk) {
        constexpr bool kChannel = Kind == Gate::Channel;
        const int first = kChunk * chunk;
        const bool updates = Prepare::updates(mode);
        const float unit = state.fit();
        typename State::Values values;
        if (updates) {
            stage.v.load(values, chunk);
        }
        typename State::Outputs outputs = {};
        if (Prepare::writes(mode)) {
            state.read(outputs, stage.keys.q, first);
        }
        if (mode == Mode::Whole) {
            if constexpr (!kChannel) {
                multiply_columns(outputs, smem.decays.inflow + first, unit);
            } else if constexpr (kNarrow<Element>) {
                multiply_all(outputs, unit);
            }
            if constexpr (kNarrow<Element>) {
                divide_columns(outputs, smem.score_units + first);
            }
            smem.scores.multiply(outputs, values, chunk);
        }
        if (updates) {
            if constexpr (kChannel) {
                state.multiply_keys(smem.decays.decay[chunk]);
                if (kNarrow<Element> && unit != 1.f) {
                    state.multiply_by(unit);
                }
            } else {
#pragma unroll
                for (int tile = 0; tile < Tiles; ++tile) {
                    weigh_columns<Element>(values[tile], smem.decays.weight + first);
                }
                const float decay = smem.decays.decay[chunk] * unit;
                if (decay != 1.f) {  // the same for the whole warp
                    state.multiply_by(decay);
                }
            }
            state.add(values, stage.keys.k, first);
        }
        if (Prepare::writes(mode)) {
            multiply_columns(outputs, smem.factors + first, mode == Mode::Read ? unit : 1.f);
            if (kChannel && params.parts != 0) {
                stage.v.store_parts(outputs, params.out, params.layer, place, n * Count, chunk,
                                    false);
            } else {
                stage.v.put(outputs, chunk);
                stage.v.store(params.out, params.layer, place, n * Count, chunk);
            }
        }
        if (kNarrow<Element> && !updates && unit != 1.f) {
            state.multiply_by(unit);
        }
    }

    __device__ __forceinline__ static void multiply_all(typename State::Outputs& outputs,
                                                        float factor) {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                outputs[tile][i / 4][i % 4] *= factor;
            }
        }
    }

    __device__ __forceinline__ static void multiply_columns(typename State::Outputs& outputs,
                                                            const float* factors, float factor) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 both = of_columns(factors, half);
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    outputs[tile][half][i] *= (i % 2 == 0 ? both.x : both.y) * factor;
                }
            }
        }
    }

    // The same by powers of two.
    __device__ __forceinline__ static void divide_columns(typename State::Outputs& outputs,
                                                          const float* powers) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 both = of_columns(powers, half);
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    outputs[tile][half][i] *= inverse(i % 2 == 0 ? both.x : both.y);
                }
            }
        }
    }

    // The state that the segment begins with.
    __device__ __forceinline__ static void load_start(const WalkParams& params, const Place& place,
                                                      Mode mode, State& state) {
        const Layer& layer = params.layer;
        const int channel = place.channel + Values::warp_channel();
        if (mode == Mode::States || mode == Mode::All) {
            return;
        }
        if (params.segments != nullptr) {
            const int64_t slot = mode == Mode::Read ? place.first_slot : place.slot;
            const States states = slot_of(params.segments, layer, slot);
            state.load(state_of(states, place, channel), states, layer.dv - channel, layer.dk);
        } else if (params.initial.at != nullptr) {
            state.load(state_of(params.initial, place, channel), params.initial,
                       layer.dv - channel, layer.dk);
        }
    }

    // What the segment leaves behind: its state, and the decay of the state before it.
    __device__ __forceinline__ static void store_end(const WalkParams& params, const Place& place,
                                                     Mode mode,
                                                     const typename Prepare::Smem& smem,
                                                     State& state) {
        const Layer& layer = params.layer;
        const int channel = place.channel + Values::warp_channel();
        if (mode == Mode::Read || (mode == Mode::Whole && !(place.last && params.last.at))) {
            return;
        }
        if (layer.reversed != 0) {
            if constexpr (Kind == Gate::Channel) {
                state.multiply_keys(smem.decays.decay[0]);
            } else {
                state.multiply_by(smem.decays.decay[0]);
            }
        }
        if (mode == Mode::Whole) {
            state.store(state_of(params.last, place, channel), params.last, layer.dv - channel,
                        layer.dk);
            return;
        }
        const States states = slot_of(params.segments, layer, place.slot);
        state.store(state_of(states, place, channel), states, layer.dv - channel, layer.dk);
    }
};

}  // namespace seqmix::linear_attention
