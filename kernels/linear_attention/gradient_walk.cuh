// The walks that give the gradients of queries, keys and values: linear attention itself, by other
// roles and, for two of them, from the last step to the first; see GradientWalkParams. "Queries",
// "keys" and "values" are those of the walk.
//
// grid    x: slices, head by head; y: segments; z: sequences
// block   takes a tile of Count steps at a time, while the next one is on its way
// warp    prepares a chunk of 16 steps of the tile by itself, and then walks over all chunks of the
//         tile for 16 * Tiles channels of the values, whose state stays in registers
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/async_copy.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "linear_attention/features.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_normalizer.cuh"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/gradient_rows.cuh"
#include "linear_attention/gradient_steps.cuh"
#include "linear_attention/ragged.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/values.cuh"

namespace seqmix::linear_attention {

// What a decay is a number of.
enum class GradientGate {
    Step,  // a step
    Row,   // a step and a channel of the walk's values
};

template <typename Element_, int Size, int Tiles, int Count, GradientGate Kind>
struct GradientWalk {
    using Element = Element_;
    using State = seqmix::linear_attention::State<Element, Size, Tiles>;
    using Values = seqmix::linear_attention::Values<Element, Tiles, Count>;
    using Params = GradientWalkParams;
    using Fade = std::conditional_t<Kind == GradientGate::Row, ByRows<Element, Size, Tiles, Count>,
                                    BySteps<Element, Size, Tiles, Count>>;
    // What only decays of steps are served with: states of another launch.
    static constexpr bool kAll = Kind == GradientGate::Step;
    using Normalized = seqmix::linear_attention::Normalized<Element, Size, Tiles, Count, true>;
    using Outputs = typename State::Outputs;

    static constexpr int kWarps = 4;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    static constexpr int kChunks = Count / kChunk;
    static constexpr int kWidth = Values::kWidth;
    static constexpr int kStages = 2;
    static_assert(kChunks <= kWarps, "a warp prepares one chunk");
    static_assert(kSpan % Count == 0, "a segment is a number of tiles");

    using KeyTile = Tile<Element, Count, Size>;
    using ValueTile = typename Values::Tile;

    struct Stage : Fade::Stage {
        KeyTile q;
        KeyTile k;
        Values v;  // and then outputs; a warp writes its own channels only
    };
    struct Smem {
        Stage stages[kStages];
        typename Fade::Smem fade;
        typename Normalized::Smem normalized;
    };

    // Whether outputs are written, and whether states change but for their decay.
    __device__ __forceinline__ static bool reads(Mode mode) {
        return mode == Mode::Whole || (kAll && mode == Mode::Read);
    }
    __device__ __forceinline__ static bool updates(Mode mode) {
        return !kAll || mode != Mode::Read;
    }

    __device__ __forceinline__ static void run(const Params& params, Smem& smem) {
        const Mode mode = static_cast<Mode>(params.mode);
        const GradientPlace place = gradient_place(params, kWidth);
        // behind the last segment of a walk is none that waits for its state
        if (!place.exists || (mode == Mode::States && place.last)) {
            return;
        }
        const int tiles = (place.steps + Count - 1) / Count;
        typename Fade::Ahead ahead = {};  // of the chunk that the warp will prepare
        // before that nothing is read, and the walks that meet have to begin together
        const int first = mode == Mode::Read ? place.lead / Count : 0;
        if (tiles > 0) {
            fetch(params, place, smem.stages[first % kStages], mode, first);
            ahead = Fade::load(params, place, first);
        }
        Normalized::clear(smem.normalized);
        if (reads(mode)) {
            Normalized::load_start(params, place, smem.normalized, start_slot(place, mode));
        }
        State state;
        state.clear();
        if (reads(mode)) {
            load_start(params, place, mode, state);
        }
        typename Fade::Passed passed(smem.fade);
        if constexpr (kAll) {
            if (mode == Mode::Read) {
                passed.decay = Fade::before(params, place);
            }
        }

#pragma unroll 1
        for (int n = first; n < tiles; ++n) {
            Stage& stage = smem.stages[n % kStages];
            wait_copies<0>();
            // the tile has landed for all warps, before they read it; and all have read the one before
            // it, its scores and its decays, before these are overwritten
            __syncthreads();
            if (n + 1 < tiles) {
                fetch(params, place, smem.stages[(n + 1) % kStages], mode, n + 1);
            }
            prepare(params, place, smem, stage, mode, ahead, n);
            ahead = Fade::load(params, place, n + 1);
            __syncthreads();  // scores, decays and mapped rows of all warps, before each reads them
#pragma unroll 1
            for (int chunk = 0; chunk < kChunks; ++chunk) {
                const int step = n * Count + kChunk * chunk;
                const int span = params.span;
                if (mode == Mode::Whole && step % span == 0 && step + span > place.lead &&
                    step < place.steps) {
                    meet(params, place, smem, state, step / span + params.across);
                }
                if (step + kChunk > place.lead && step < place.steps) {
                    walk(params, place, smem, stage, mode, state, passed, n, chunk);
                }
            }
        }
        if constexpr (kAll) {
            if (mode == Mode::Read) {
                state.multiply_by(passed.decay);
                Normalized::multiply_by(smem.normalized, passed.decay);
            }
        }
        // kept or found again, whichever takes fewer registers
        const GradientPlace end = kAll && sizeof(Element) == 2
                                      ? place
                                      : gradient_place(params, kWidth);
        store_end(params, end, mode, smem, state, passed);
    }

    // Starts the copies of the n-th tile. What is not there is zeros.
    __device__ __forceinline__ static void fetch(const Params& params, const GradientPlace& place,
                                                 Stage& stage, Mode mode, int n) {
        const Layer& layer = params.layer;
        const auto rows = [&](auto& tile, const Rows& from, int first_step, int end_step,
                              int channel, int channels) {
            using T = std::remove_reference_t<decltype(tile)>;
            const int first = first_step - n * Count;
            const int end = end_step - n * Count;
            const Element* at = row_of<const Element>(from, place, n * Count) + channel;
            const int64_t stride = stride_of(from, place);
            if (layer.ragged != 0) {
                fetch_ragged<kThreads>(tile, at, stride, first, end, channels, layer.ragged);
                return;
            }
#pragma unroll 2
            for (int i = 0; i < Count * T::kChunks / kThreads; ++i) {
                const int index = i * kThreads + thread_of_block();
                const int row = index / T::kChunks;
                const int chunk = index % T::kChunks;
                const bool valid = row >= first && row < end && kElements * chunk < channels;
                copy16_async(tile.address(row, chunk), at + row * stride + kElements * chunk,
                             valid);
            }
        };
        if (reads(mode)) {
            rows(stage.q, layer.q, place.lead, place.queries_end(params), 0, layer.dk);
        }
        if (updates(mode)) {
            const int first = place.first_key(params);
            rows(stage.k, layer.k, first, place.steps, 0, layer.dk);
            rows(stage.v.tile, layer.v, first, place.values_end(params), place.channel,
                 layer.dv - place.channel);
        }
        Fade::fetch(params, place, stage, n);
        commit_copies();
    }

    // Makes what all warps need of this warp's chunk of the n-th tile.
    __device__ __forceinline__ static void prepare(const Params& params,
                                                   const GradientPlace& place, Smem& smem,
                                                   Stage& stage, Mode mode,
                                                   const typename Fade::Ahead& ahead, int n) {
        const Layer& layer = params.layer;
        const int chunk = warp_of_block();
        if (chunk >= kChunks) {
            return;
        }
        const int first = kChunk * chunk;
        const int before = n * Count + first;  // steps
        const float2 factors = Normalized::load(params, place, n);
        const auto map = [&](auto& tile, int number, int from, int to, int columns) {
            map_rows(tile, static_cast<FeatureMap>(number), first, to - before, columns,
                     from - before);
        };
        if (reads(mode)) {
            map(stage.q, layer.query_map, place.lead, place.queries_end(params), layer.dk);
        }
        if (updates(mode)) {
            const int from = place.first_key(params);
            map(stage.k, layer.key_map, from, place.steps, layer.dk);
            map(stage.v.tile, params.value_map, from, place.values_end(params),
                layer.dv - place.channel);
        }
        __syncwarp();  // mapped rows of all lanes, before each reads them
        Normalized::prepare(params, smem.normalized, chunk, factors);
        Products scores = {};  // of a walk that only reads or only writes: nothing
        if (mode == Mode::Whole) {
            multiply_rows<Size>(scores, stage.q, stage.k, first);
            Normalized::score(params, smem.normalized, scores, chunk);
        }
        const bool strict = params.own.at != nullptr;
        if (strict && place.channel == 0) {
            for_each_score(scores, [&](const float& score, int i, int j) {
                const int step = before + i;
                if (i == j && step >= place.lead && step < place.queries_end(params)) {
                    *row_of<float>(params.own, place, step) = score;
                }
            });
        }
        Fade::prepare(params, smem.fade, scores, chunk, ahead, strict);
        if (params.pairs.at != nullptr && place.channel == 0) {
            __syncwarp();  // the scores of all lanes, before each reads them
            const int from = max(place.lead - before, 0);
            const int to = min(place.queries_end(params) - before, kChunk);
            const int j = lane_of_warp() % kChunk;
#pragma unroll 1
            for (int i = from + lane_of_warp() / kChunk; i < to; i += 2) {
                row_of<float>(params.pairs, place, before + i)[j] =
                    Fade::score(smem.fade, chunk, i, j);
            }
        }
    }

    // Walks over a chunk of the n-th tile, for the warp's channels.
    __device__ __forceinline__ static void walk(const Params& params, const GradientPlace& place,
                                                Smem& smem, Stage& stage, Mode mode,
                                                State& state, typename Fade::Passed& passed,
                                                int n, int chunk) {
        const int first = kChunk * chunk;
        const float unit = state.fit();
        Outputs outputs = {};
        if constexpr (kAll) {
            if (mode == Mode::Read) {
                state.read(outputs, stage.q, first);
                Normalized::read(params, smem.normalized, chunk, unit, outputs);
                Fade::read(params, smem.fade, chunk, unit, outputs, passed);
                store(params, place, stage, outputs, n, chunk);
                if (unit != 1.f) {  // the same for the whole warp
                    state.multiply_by(unit);
                }
                return;
            }
        }
        typename State::Values values;
        stage.v.load(values, chunk);
        typename Fade::Faded faded;
        Fade::fade(params, smem.fade, stage, chunk, values, faded);
        if (mode == Mode::Whole) {
            state.read(outputs, stage.q, first);
            Normalized::read(params, smem.normalized, chunk, unit, outputs);
        }
        Fade::apply(params, smem.fade, chunk, unit, faded, outputs, values, state, passed);
        Normalized::pass(params, smem.normalized, chunk, values, [&](int tile, int row) {
            return Fade::decay(smem.fade, chunk, faded, tile, row);
        });
        Normalized::weigh(params, smem.normalized, chunk, values);
        Normalized::divide(params, smem.normalized, chunk, state);
        state.add(values, stage.k, first);
        Normalized::multiply(params, smem.normalized, chunk, state);
        if (mode == Mode::Whole) {
            store(params, place, stage, outputs, n, chunk);
        }
    }

    // Stores the outputs of the warp's channels of a chunk of the n-th tile.
    __device__ __forceinline__ static void store(const Params& params, const GradientPlace& place,
                                                 Stage& stage, Outputs& outputs, int n,
                                                 int chunk) {
        const Layer& layer = params.layer;
        Place written = place;
        written.steps = place.queries_end(params);
        if (params.parts == 0) {
            stage.v.put(outputs, chunk);
            stage.v.store(params.out, layer, written, n * Count, chunk, place.lead);
            return;
        }
        stage.v.store_parts(outputs, params.out, layer, written, n * Count, chunk,
                            params.parts == 2, place.lead);
    }

    // The state at the n-th border of the walk's spans: stored, or multiplied with the one that is, or that
    // is at the next border.
    __device__ __forceinline__ static void meet(const Params& params, const GradientPlace& place,
                                                const Smem& smem, const State& state, int n) {
        if (params.spans == nullptr) {
            return;
        }
        const Layer& layer = params.layer;
        const int slices = (layer.dv + kWidth - 1) / kWidth;
        const int64_t head =
            static_cast<int64_t>(place.span + place.direction * n) * layer.heads + place.head;
        const int64_t index =
            (head * slices + place.channel / kWidth) * kWarps + warp_of_block();
        auto* at = static_cast<Element*>(params.spans) + index * (16 * Tiles * Size) +
                   kElements * lane_of_warp();
        constexpr int kBoth = kElements / 4;  // parts of 16 bytes of a lane
        if (params.dots == nullptr) {
            const float unit = kNarrow<Element> ? fitting(state.largest()) : 1.f;
#pragma unroll
            for (int i = 0; i < Tiles * State::kParts / kBoth; ++i) {
                Pairs<Element> pairs;
#pragma unroll
                for (int j = 0; j < 2 * kBoth; ++j) {
                    const int part = i * kBoth + j / 2;
                    const float* both =
                        &state.values[part / State::kParts][part % State::kParts][j % 2 * 2];
                    pairs.values[j] = join<Element>(both[0] * inverse(unit), both[1] * inverse(unit));
                }
                pairs.store(at + i * 32 * kElements);
            }
            if (lane_of_warp() == 0) {
                params.span_units[index] = unit;
            }
            Normalized::store(params, place, smem.normalized, params.z_spans, head);
            return;
        }
        const float unit = params.span_units[index];
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            float sums[2] = {};
#pragma unroll
            for (int i = 0; i < State::kParts / kBoth; ++i) {
                if (i % 4 == 0) {
                    __syncwarp();  // four reads are on their way: more would take registers
                }
                const auto pairs =
                    Pairs<Element>::load(at + (tile * (State::kParts / kBoth) + i) * 32 * kElements);
#pragma unroll
                for (int j = 0; j < 2 * kBoth; ++j) {
                    const float2 other = part<Element>(pairs.values[j]);
                    const float* both = &state.values[tile][i * kBoth + j / 2][j % 2 * 2];
                    sums[j % 2] += both[0] * other.x + both[1] * other.y;
                }
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int channel =
                    place.channel + Values::warp_channel() + 16 * tile + 8 * half + lane_row();
                float sum = quad_sum(sums[half]) * unit;
                if (lane_column() == 0 && channel < layer.dv) {
                    const int64_t at = head * layer.dv + channel;
                    if (Normalized::asked(params)) {
                        sum += smem.normalized.z[channel - place.channel] * params.z_spans[at];
                    }
                    float& all = params.dots[at];
                    all = params.parts == 2 ? all + sum : sum;
                }
            }
        }
    }

    // Where the states of slot `slot` lie in the workspace.
    __device__ __forceinline__ static States segment_states(const Params& params, int64_t slot) {
        States states = params.segments;
        states.at += slot * states.sequence_stride;
        states.sequence_stride = 0;  // the sequence is part of the slot
        return states;
    }

    // The slot of the workspace whose state the segment begins with.
    __device__ __forceinline__ static int64_t start_slot(const GradientPlace& place, Mode mode) {
        return mode == Mode::Read ? place.first_slot : place.slot;
    }

    // The state that the segment begins with.
    __device__ __forceinline__ static void load_start(const Params& params,
                                                      const GradientPlace& place, Mode mode,
                                                      State& state) {
        const Layer& layer = params.layer;
        const int channel = place.channel + Values::warp_channel();
        if (params.segments.at != nullptr) {
            const States states = segment_states(params, start_slot(place, mode));
            state.load(state_of(states, place, channel), states, layer.dv - channel, layer.dk);
        } else if (params.initial.at != nullptr) {
            state.load(state_of(params.initial, place, channel), params.initial,
                       layer.dv - channel, layer.dk);
        }
    }

    // What the segment leaves behind: its state, and the decays of the state before it.
    __device__ __forceinline__ static void store_end(const Params& params,
                                                     const GradientPlace& place, Mode mode,
                                                     Smem& smem, State& state,
                                                     const typename Fade::Passed& passed) {
        const Layer& layer = params.layer;
        const int channel = place.channel + Values::warp_channel();
        if (reads(mode)) {
            if (place.last) {
                if (params.across == 0) {
                    meet(params, place, smem, state, place.spans);
                }
                if (place.decays_behind(params)) {
                    // found again: kept it would take registers
                    Fade::template leave<Normalized>(params, gradient_place(params, kWidth), state,
                                                     smem.normalized);
                }
                if (params.last.at != nullptr) {
                    state.store(state_of(params.last, place, channel), params.last,
                                layer.dv - channel, layer.dk);
                }
                Normalized::store_end(params, place, smem.normalized);
            }
            return;
        }
        const States states = segment_states(params, place.slot);
        state.store(state_of(states, place, channel), states, layer.dv - channel, layer.dk);
        Normalized::store(params, place, smem.normalized, params.z_segments,
                          place.slot * layer.heads + place.head);
        Fade::store(params, place, smem.fade, passed);
    }
};

}  // namespace seqmix::linear_attention
