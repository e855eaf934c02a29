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
#include "linear_attention/features.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/steps.cuh"
#include "linear_attention/values.cuh"

namespace seqmix::linear_attention {

template <typename Element_, int Size, int Tiles, int Count, int Stages>
struct Walk {
    using Element = Element_;
    using State = seqmix::linear_attention::State<Element, Size, Tiles>;
    using Values = seqmix::linear_attention::Values<Element, Tiles, Count>;

    static constexpr int kWarps = 4;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    static constexpr int kChunks = Count / kChunk;
    static_assert(kChunks <= kWarps, "a warp prepares one chunk");
    static_assert(Stages == 1 || Stages == 2, "a tile, and perhaps the next one");

    using KeyTile = Tile<Element, Count, Size>;
    using KeyCopy = Copy<kThreads, KeyTile>;
    using ValueCopy = Copy<kThreads, typename Values::Tile>;

    struct Stage {
        KeyTile q;
        KeyTile k;
        Values v;  // and then outputs; a warp writes its own channels only
    };
    struct Smem {
        Stage stages[Stages];
        Squares<Element, Count> scores;
        Steps<Count> steps;
        float factors[Count];      // of outputs
        float score_units[Count];  // what scores were divided by, if kNarrow
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
        if (tiles > 0) {
            fetch(layer, place, smem.stages[0], mode, 0);
            exponent = load_exponent(layer, place, 0);
        }
        State state;
        state.clear();
        load_start(params, place, mode, state);
        float decay = 1.f;  // of all tiles so far

#pragma unroll 1
        for (int n = 0; n < tiles; ++n) {
            Stage& stage = smem.stages[n % Stages];
            wait_copies<0>();
            // the tile has landed for all warps, before they read it; and all have read the one before
            // it, its scores and its decays, before these are overwritten
            __syncthreads();
            if (Stages == 2 && n + 1 < tiles) {
                fetch(layer, place, smem.stages[(n + 1) % Stages], mode, n + 1);
            }
            const int rows = place.steps - n * Count;
            if (warp_of_block() < kChunks) {
                prepare(layer, smem, stage, mode, exponent, rows);
            }
            exponent = load_exponent(layer, place, n + 1);
            __syncthreads();  // scores, decays and mapped keys of all warps, before each reads them
#pragma unroll 1
            for (int chunk = 0; chunk < kChunks && chunk * kChunk < rows; ++chunk) {
                walk(params, place, mode, smem, stage, state, n, chunk);
                decay *= smem.steps.decay[chunk];
            }
            if (Stages == 1 && n + 1 < tiles) {
                __syncthreads();  // all have read the tile, before the next one overwrites it
                fetch(layer, place, stage, mode, n + 1);
            }
        }
        store_end(params, place, mode, state, decay);
    }

    // The exponent of this lane's step in the warp's chunk of the n-th tile.
    __device__ __forceinline__ static float load_exponent(const Layer& layer, const Place& place,
                                                          int n) {
        const int step = n * Count + kChunk * warp_of_block() + lane_of_warp() % kChunk;
        return seqmix::linear_attention::load_exponent(decays_of(layer, place, step));
    }

    // Starts the copies of the n-th tile.
    __device__ __forceinline__ static void fetch(const Layer& layer, const Place& place,
                                                 Stage& stage, Mode mode, int n) {
        const int rows = place.steps - n * Count;
        const auto keys = [&](const KeyTile& tile, const Rows& from) {
            const Element* first = row_of<const Element>(from, place, n * Count);
            const int64_t stride = stride_of(from, place);
            KeyCopy::start(tile, KeyCopy::source(first, stride), stride, rows,
                           layer.dk / kElements);
        };
        if (mode == Mode::Whole || mode == Mode::Read) {
            keys(stage.q, layer.q);
        }
        if (mode != Mode::Read) {
            keys(stage.k, layer.k);
            const Element* first = row_of<const Element>(layer.v, place, n * Count) + place.channel;
            const int64_t stride = stride_of(layer.v, place);
            ValueCopy::start(stage.v.tile, ValueCopy::source(first, stride), stride, rows,
                             min(layer.dv - place.channel, Values::kWidth) / kElements);
        }
        commit_copies();
    }

    // Makes what all warps need of this warp's chunk, of which `rows` less its first are steps.
    __device__ __forceinline__ static void prepare(const Layer& layer, Smem& smem, Stage& stage,
                                                   Mode mode, float exponent, int rows) {
        const int chunk = warp_of_block();
        const int first = kChunk * chunk;
        smem.steps.scan(chunk, exponent);
        if (mode != Mode::Read) {
            map_rows(stage.k, static_cast<FeatureMap>(layer.key_map), first, rows - first,
                     layer.dk);
        }
        if (mode == Mode::Whole || mode == Mode::Read) {
            map_rows(stage.q, static_cast<FeatureMap>(layer.query_map), first, rows - first,
                     layer.dk);
        }
        __syncwarp();  // decays and mapped rows of all lanes, before each reads them
        float units[2] = {1.f, 1.f};
        if (mode == Mode::Whole) {
            Products scores = {};
            multiply_rows<Size>(scores, stage.q, stage.k, first);
            for_each_score(scores, [&](float& score, int i, int j) {
                score = j <= i ? score * smem.steps.between(first + i, first + j) : 0.f;
            });
            fit_rows(scores, units);
            smem.scores.store(chunk, scores);
        }
        if (lane_column() == 0) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = first + lane_row() + 8 * half;
                smem.score_units[at] = units[half];
                smem.factors[at] = layer.scale * units[half];
            }
        }
    }

    // Divides each row of scores by the power of two that makes it an operand, if kNarrow.
    __device__ __forceinline__ static void fit_rows(Products& scores, float (&units)[2]) {
        if constexpr (kNarrow<Element>) {
            float largest[2] = {};
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], fabsf(scores[i / 4][i % 4]));
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                units[half] = fitting(quad_max(largest[half]));
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                scores[i / 4][i % 4] *= inverse(units[i / 2 % 2]);
            }
        }
    }

    // Walks over a chunk of the n-th tile, for the warp's channels.
    __device__ __forceinline__ static void walk(const WalkParams& params, const Place& place,
                                                Mode mode, Smem& smem, Stage& stage, State& state,
                                                int n, int chunk) {
        const int first = kChunk * chunk;
        const float unit = state.fit();
        typename State::Values values;
        if (mode != Mode::Read) {
            stage.v.load(values, chunk);
        }
        typename State::Outputs outputs = {};
        if (mode == Mode::Whole) {
            state.read(outputs, stage.q, first);
            multiply_columns(outputs, smem.steps.inflow + first, unit);
            if constexpr (kNarrow<Element>) {
                divide_columns(outputs, smem.score_units + first);
            }
            smem.scores.multiply(outputs, values, chunk);
        } else if (mode == Mode::Read) {
            state.read(outputs, stage.q, first);
        }
        if (mode != Mode::Read) {
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                weigh_columns<Element>(values[tile], smem.steps.weight + first);
            }
            const float decay = smem.steps.decay[chunk] * unit;
            if (decay != 1.f) {  // the same for all threads but for a warp's unit
                state.multiply_by(decay);
            }
            state.add(values, stage.k, first);
        }
        if (mode == Mode::Whole || mode == Mode::Read) {
            multiply_columns(outputs, smem.factors + first, mode == Mode::Read ? unit : 1.f);
            stage.v.put(outputs, chunk);
            stage.v.store(params.out, params.layer, place, n * Count, chunk);
        }
        if (mode == Mode::Read && unit != 1.f) {
            state.multiply_by(unit);
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
                                                     Mode mode, State& state, float decay) {
        const Layer& layer = params.layer;
        const int channel = place.channel + Values::warp_channel();
        if (mode == Mode::Read || (mode == Mode::Whole && !(place.last && params.last.at))) {
            return;
        }
        const float* behind = decays_behind(layer, place);
        if (behind != nullptr) {
            const float factor = exp2_approx(exponent_of(*behind));
            state.multiply_by(factor);
            decay *= factor;
        }
        if (mode == Mode::Whole) {
            state.store(state_of(params.last, place, channel), params.last, layer.dv - channel,
                        layer.dk);
            return;
        }
        const States states = slot_of(params.segments, layer, place.slot);
        state.store(state_of(states, place, channel), states, layer.dv - channel, layer.dk);
        if (channel == 0 && lane_of_warp() == 0) {
            params.decays[place.slot * layer.heads + place.head] = decay;
        }
    }
};

}  // namespace seqmix::linear_attention
