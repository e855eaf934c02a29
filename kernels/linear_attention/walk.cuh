// What walks over sequences have in common whose decays are a number a step: tiles in shared memory, and
// the ends of a segment.
//
// All products of a walk are transposed: a row for each channel of the values, and a column for each
// step or channel of the keys. Decays multiply columns; queries and keys stay as they were read.
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
