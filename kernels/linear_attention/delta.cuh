// Linear attention by the delta rule for every GPU since Ampere: a block walks over a segment of a
// sequence, for a slice of a head's channels of the values, as Walk does by the linear rule.
//
// grid    x: slices, head by head; y: segments; z: sequences
// block   takes a tile of Count steps at a time, while the next one is on its way
// warp    prepares a chunk of 16 steps of the tile, or half of it: its scores, and the inverse that solves
//         for its updates. Then it walks over all chunks of the tile for 16 * Tiles channels
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
//
// All products of a walk are transposed, as those of Walk. With the state S before a chunk, decays P
// since then, B = diag(beta) and N of linear_attention/inverse.cuh,
//
//     R^T = V^T - S^T (K P)^T,   E^T = R^T + R^T N^T,   U = B E
//     O^T = S^T (Q P)^T + U^T A^T,   S^T = S^T P_n + U^T (K P_n / P)
//
// where P is a number a step, which multiplies columns on the left of these (delta_steps.cuh), or one for
// each channel of the keys, which multiplies keys and queries (delta_channels.cuh).
//
// What a segment makes of the state before it is a product with a matrix: with no values and from the
// identity, the walk leaves that matrix behind (delta_carry.cuh).
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/async_copy.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/delta_channels.cuh"
#include "linear_attention/delta_params.h"
#include "linear_attention/delta_steps.cuh"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/inverse.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"
#include "linear_attention/prepare.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/values.cuh"
#include "linear_attention/walk.cuh"

namespace seqmix::linear_attention {

// The place of a block that takes `width` channels of the values of a segment; Direction as
// `layer.reversed` says. From the last step on, segments are those of the walks of gradients, which
// begin at a multiple of kSpan (gradient_place.cuh).
template <int Direction>
__device__ __forceinline__ Place place_of_segment(const Layer& layer, int width) {
    const int slices = (layer.dv + width - 1) / width;
    const int index = static_cast<int>(blockIdx.y);
    const Sequence all = sequence_of(layer.cu_seqlens, layer.steps, layer.segment,
                                     static_cast<int>(blockIdx.z));
    const int lead = Direction > 0 ? 0 : spans_of(all.steps, kSpan) * kSpan - all.steps;
    const int begin = index < all.segments ? max(index * layer.segment - lead, 0) : 0;
    const int end = index + 1 < all.segments ? (index + 1) * layer.segment - lead : all.steps;
    return {static_cast<int>(blockIdx.x) / slices,
            static_cast<int>(blockIdx.x) % slices * width,
            Direction > 0 ? all.start + begin : all.start + all.steps - 1 - begin,
            Direction,
            end - begin,
            all.slot + index,
            all.slot,
            index == 0,
            index + 1 == all.segments,
            index < all.segments};
}

// What a tile of steps is prepared with, by what decays are.
template <typename Element, int Size, int Count, Gate Decays, DeltaWalk Kind>
using DeltaFade = std::conditional_t<Decays == Gate::Channel,
                                     DeltaChannels<Element, Size, Count, Kind>,
                                     DeltaSteps<Element, Size, Count, Kind>>;

// Multiplies columns of outputs, of which `of_half` gives two in each half.
template <typename Outputs, typename OfHalf>
__device__ __forceinline__ void multiply_halves(Outputs& outputs, float factor,
                                                const OfHalf& of_half) {
    constexpr int kTiles = sizeof(Outputs) / sizeof(outputs[0]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float2 both = of_half(half);
#pragma unroll
        for (int i = 0; i < 4 * kTiles; ++i) {
            outputs[i / 4][half][i % 4] *= (i % 2 == 0 ? both.x : both.y) * factor;
        }
    }
}

template <typename Element_, int Size, int Tiles, int Count, int Stages, Gate Decays>
struct Delta {
    using Element = Element_;
    using Linear = Walk<Element, Size, Tiles, Count, Stages, Decays>;
    using Fade = DeltaFade<Element, Size, Count, Decays, DeltaWalk::Outputs>;
    using State = typename Linear::State;
    using Values = typename Linear::Values;
    using Stage = typename Linear::Stage;
    using Outputs = typename State::Outputs;
    using Operands = typename State::Values;

    static constexpr int kThreads = Linear::kThreads;
    static constexpr int kChunks = Linear::kChunks;

    struct Smem {
        Stage stages[Stages];
        typename Fade::Smem prepared;
    };

    __device__ __forceinline__ static void run(const DeltaParams& params, Smem& smem) {
        const WalkParams& walk_params = params.walk;
        const Layer& layer = walk_params.layer;
        const Place place = place_of_segment<1>(layer, Values::kWidth);
        const Mode mode = static_cast<Mode>(walk_params.mode);
        // behind the last segment is none that waits for its state
        if (!place.exists || (mode == Mode::States && place.last)) {
            return;
        }
        // updates are all that there is to read in the backward pass
        const Mode read = params.errors.at == nullptr ? mode : Mode::States;
        const int tiles = (place.steps + Count - 1) / Count;
        Fade::begin(smem.prepared);
        typename Fade::Ahead ahead = {};  // of the chunk that the warp will prepare
        if (tiles > 0) {
            fetch(params, place, smem.stages[0], read, 0);
            ahead = Fade::load(params, place, 0);
        }
        State state;
        load_start(params, place, state);

#pragma unroll 1
        for (int n = 0; n < tiles; ++n) {
            Stage& stage = smem.stages[n % Stages];
            wait_copies<0>();
            // the tile has landed for all warps, before they read it; and all have read the one before
            // it, its scores and its decays, before these are overwritten
            __syncthreads();
            if (Stages == 2 && n + 1 < tiles) {
                fetch(params, place, smem.stages[(n + 1) % Stages], read, n + 1);
            }
            const int rows = place.steps - n * Count;
            Fade::prepare(walk_params, smem.prepared, stage.keys, read, ahead, rows);
            ahead = Fade::load(params, place, n + 1);
            __syncthreads();  // scores, inverses, decays and mapped keys, before each warp reads them
#pragma unroll 1
            for (int chunk = 0; chunk < kChunks && chunk * kChunk < rows; ++chunk) {
                walk(params, place, read, smem, stage, state, n, chunk);
            }
            if (Stages == 1 && n + 1 < tiles) {
                __syncthreads();  // all have read the tile, before the next one overwrites it
                fetch(params, place, stage, read, n + 1);
            }
        }
        // found again, and not kept in registers meanwhile
        store_end(walk_params, place_of_segment<1>(layer, Values::kWidth), state);
    }

    // Starts the copies of the n-th tile, without values if the walk begins with the identity.
    __device__ __forceinline__ static void fetch(const DeltaParams& params, const Place& place,
                                                 Stage& stage, Mode mode, int n) {
        Place of_values = place;
        of_values.steps = params.identity != 0 ? 0 : place.steps;
        Linear::Prepare::fetch(params.walk.layer, place, stage.keys, mode, n * Count);
        stage.v.template fetch<kThreads>(params.walk.layer, of_values, n * Count);
        commit_copies();
    }

    // The state that the segment begins with.
    __device__ __forceinline__ static void load_start(const DeltaParams& params, const Place& place,
                                                      State& state) {
        state.clear();
        if (params.identity != 0) {
            state.make_identity(place.channel + Values::warp_channel());
        }
        Linear::load_start(params.walk, place, static_cast<Mode>(params.walk.mode), state);
    }

    // What the segment leaves behind, if it is asked for.
    __device__ __forceinline__ static void store_end(const WalkParams& params, const Place& place,
                                                     State& state) {
        const bool whole = params.mode != static_cast<int>(Mode::States);
        if (whole && (!place.last || params.last.at == nullptr)) {
            return;
        }
        const States to =
            whole ? params.last : slot_of(params.segments, params.layer, place.slot);
        const int channel = place.channel + Values::warp_channel();
        state.store(state_of(to, place, channel), to, params.layer.dv - channel, params.layer.dk);
    }

    // Walks over a chunk of the n-th tile, for the warp's channels.
    __device__ __forceinline__ static void walk(const DeltaParams& params, const Place& place,
                                                Mode mode, Smem& smem, Stage& stage, State& state,
                                                int n, int chunk) {
        const int first = kChunk * chunk;
        auto& prepared = smem.prepared;
        const auto inflow = [&](int half) { return Fade::inflow(prepared, first, half); };
        const auto weight = [&](int half) { return Fade::weight(prepared, first, half); };
        const auto& lookups = Fade::lookups(prepared, stage.keys.k);
        const float unit = state.fit();
        Outputs outputs = {};
        Outputs errors = {};
        if (mode == Mode::Whole) {
            read_both(state, outputs, stage.keys.q, errors, lookups, first);
        } else {
            state.read(errors, lookups, first);
        }
        subtract_from_values(errors, stage.v, inflow, unit, chunk);
        const float error_unit = prepared.inverses.solve(errors, chunk);
        if (params.errors.at != nullptr) {
            store(params.errors, params, place, stage, errors, error_unit, n, chunk);
        }
        Linear::multiply_columns(errors, prepared.inverses.beta + first, 1.f);
        const float update_unit = error_unit * fit_columns<Element>(errors);
        if (mode == Mode::Whole) {
            multiply_halves(outputs, unit * inverse(update_unit), inflow);
            if constexpr (kNarrow<Element>) {
                Linear::divide_columns(outputs, prepared.score_units + first);
            }
            Operands updates;
            to_operands<Element>(updates, errors);
            prepared.scores.multiply(outputs, updates, chunk);
            Linear::multiply_columns(outputs, prepared.factors + first, 1.f);
            store(params.walk.out, params, place, stage, outputs, update_unit, n, chunk);
        } else if (params.errors.at != nullptr) {
            store(params.walk.out, params, place, stage, errors, update_unit, n, chunk);
        }
        multiply_halves(errors, 1.f, weight);
        Operands updates;
        to_operands<Element>(updates, errors);
        Fade::fade(prepared, chunk, state, unit * inverse(update_unit));
        state.add(updates, stage.keys.k, first);
        if (kNarrow<Element> && update_unit != 1.f) {
            state.multiply_by(update_unit);
        }
    }

    // from_q += S^T q^T and from_k += S^T k^T, of the 16 rows of each tile from `row` on: the state is made
    // an operand once.
    template <typename KeyTile>
    __device__ __forceinline__ static void read_both(const State& state, Outputs& from_q,
                                                     const KeyTile& q, Outputs& from_k,
                                                     const KeyTile& k, int row) {
        const auto q_rows = by_columns(q, 0);
        const auto k_rows = by_columns(k, 0);
#pragma unroll
        for (int step = 0; step < Size / 16; ++step) {
            Pair<Element> q_operand[4];
            Pair<Element> k_operand[4];
            q_rows.load(q_operand, row, step);
            k_rows.load(k_operand, row, step);
#pragma unroll
            for (int i = 0; i < Tiles; ++i) {
                Pair<Element> a[4];
                state.operand(a, i, step);
                multiply_pairs<Element>(from_q[i][0], a, q_operand[0], q_operand[1]);
                multiply_pairs<Element>(from_q[i][1], a, q_operand[2], q_operand[3]);
                multiply_pairs<Element>(from_k[i][0], a, k_operand[0], k_operand[1]);
                multiply_pairs<Element>(from_k[i][1], a, k_operand[2], k_operand[3]);
            }
        }
    }

    // errors = values - inflow * unit * errors
    template <typename OfHalf>
    __device__ __forceinline__ static void subtract_from_values(Outputs& errors,
                                                                const Values& values,
                                                                const OfHalf& inflow, float unit,
                                                                int chunk) {
        Operands loaded;
        values.load(loaded, chunk);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 decay = inflow(half);
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float2 value = part<Element>(loaded[tile][2 * half + i]);
                    float* error = &errors[tile][half][2 * i];
                    error[0] = fmaf(-error[0], decay.x * unit, value.x);
                    error[1] = fmaf(-error[1], decay.y * unit, value.y);
                }
            }
        }
    }

    // Stores what is `unit` times outputs, over the values of the chunk of the n-th tile.
    __device__ __forceinline__ static void store(const Rows& to, const DeltaParams& params,
                                                 const Place& place, Stage& stage,
                                                 const Outputs& outputs, float unit, int n,
                                                 int chunk) {
        if constexpr (kNarrow<Element>) {
            Outputs scaled;
#pragma unroll
            for (int i = 0; i < 8 * Tiles; ++i) {
                scaled[i / 8][i / 4 % 2][i % 4] = outputs[i / 8][i / 4 % 2][i % 4] * unit;
            }
            stage.v.put(scaled, chunk);
        } else {
            stage.v.put(outputs, chunk);
        }
        stage.v.store(to, params.walk.layer, place, n * Count, chunk);
    }
};

}  // namespace seqmix::linear_attention
