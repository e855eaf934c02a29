// The gradients of what the delta rule writes: a walk from the last step to the first, for a slice of a
// head's channels of the values, which carries the gradient G of the state.
//
// grid    x: slices, head by head; y: segments; z: sequences
// block   takes a tile of Count steps at a time, while the next one is on its way
// warp    prepares a chunk of 16 steps of the tile, or half of it; then it walks over all chunks of the
//         tile for 16 * Tiles channels
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
//
// In the order of the walk, the update of a step acts on earlier steps' gradients as a value acts on
// later outputs. With G behind a chunk, the decays P since then, and M, N and B as in inverse.cuh,
//
//     R^T = G^T (K P)^T + dO^T A^T,   A = scale K Q^T, decayed, up to the diagonal
//     W^T = R^T + R^T N^T,   dV = B W,   dbeta = the sum of W * E along each row
//     G^T = G^T P_n + scale dO^T (Q P_n / P) - dV^T (K P_n / P)
//
// The roles of the walk's layer: its queries are the keys, its keys the queries, its values dO.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/delta.cuh"

namespace seqmix::linear_attention {

template <typename Element_, int Size, int Tiles, int Count, int Stages, Gate Decays>
struct DeltaGradients {
    using Element = Element_;
    using Linear = Walk<Element, Size, Tiles, Count, Stages, Decays>;
    using Fade = DeltaFade<Element, Size, Count, Decays, DeltaWalk::Gradients>;
    using Forward = Delta<Element, Size, Tiles, Count, Stages, Decays>;
    using State = typename Linear::State;
    using Values = typename Linear::Values;
    using Outputs = typename State::Outputs;
    using Operands = typename State::Values;

    static constexpr int kThreads = Linear::kThreads;
    static constexpr int kChunks = Linear::kChunks;

    using Stage = typename Linear::Stage;

    struct Smem {
        Stage stages[Stages];
        Values errors[Stages];  // E of the forward pass
        typename Fade::Smem prepared;
    };

    __device__ __forceinline__ static void run(const DeltaGradientParams& params, Smem& smem) {
        const DeltaParams& delta = params.delta;
        const Layer& layer = delta.walk.layer;
        const Place place = place_of_segment<-1>(layer, Values::kWidth);
        const Mode mode = static_cast<Mode>(delta.walk.mode);
        // behind the last segment is none that waits for its state
        if (!place.exists || (mode == Mode::States && place.last)) {
            return;
        }
        const int tiles = (place.steps + Count - 1) / Count;
        Fade::begin(smem.prepared);
        typename Fade::Ahead ahead = {};  // of the chunk that the warp will prepare
        if (tiles > 0) {
            fetch(delta, place, smem, 0);
            ahead = Fade::load(delta, place, 0);
        }
        State state;
        Forward::load_start(delta, place, state);

#pragma unroll 1
        for (int n = 0; n < tiles; ++n) {
            Stage& stage = smem.stages[n % Stages];
            wait_copies<0>();
            // the tile has landed for all warps, before they read it; and all have read the one before
            // it, its scores and its decays, before these are overwritten
            __syncthreads();
            if (Stages == 2 && n + 1 < tiles) {
                fetch(delta, place, smem, n + 1);
            }
            const int rows = place.steps - n * Count;
            Fade::prepare(delta.walk, smem.prepared, stage.keys, Mode::Whole, ahead, rows);
            ahead = Fade::load(delta, place, n + 1);
            __syncthreads();  // scores, inverses, decays and mapped keys, before each warp reads them
#pragma unroll 1
            for (int chunk = 0; chunk < kChunks && chunk * kChunk < rows; ++chunk) {
                walk(params, place, smem, stage, state, n, chunk);
            }
            if (Stages == 1 && n + 1 < tiles) {
                __syncthreads();  // all have read the tile, before the next one overwrites it
                fetch(delta, place, smem, n + 1);
            }
        }
        // found again, and not kept in registers meanwhile
        const Place end = place_of_segment<-1>(layer, Values::kWidth);
        Fade::leave(layer, end, smem.prepared, state);
        Forward::store_end(delta.walk, end, state);
    }

    // Starts the copies of the n-th tile.
    __device__ __forceinline__ static void fetch(const DeltaParams& params, const Place& place,
                                                 Smem& smem, int n) {
        if (params.errors.at != nullptr) {
            Layer of_errors = params.walk.layer;
            of_errors.v = params.errors;
            smem.errors[n % Stages].template fetch<kThreads>(of_errors, place, n * Count);
        }
        Forward::fetch(params, place, smem.stages[n % Stages], Mode::Whole, n);
    }

    // Walks over a chunk of the n-th tile, for the warp's channels.
    __device__ __forceinline__ static void walk(const DeltaGradientParams& params,
                                                const Place& place, Smem& smem, Stage& stage,
                                                State& state, int n, int chunk) {
        const int first = kChunk * chunk;
        auto& prepared = smem.prepared;
        const auto inflow = [&](int half) { return Fade::inflow(prepared, first, half); };
        const auto weight = [&](int half) { return Fade::weight(prepared, first, half); };
        const float unit = state.fit();
        Operands douts;
        stage.v.load(douts, chunk);
        Outputs errors = {};
        prepared.scores.multiply(errors, douts, chunk);
        Linear::multiply_columns(errors, prepared.factors + first, 1.f);
        add_read(errors, state, Fade::lookups(prepared, stage.keys.q), inflow, unit, first);
        Fade::fade(prepared, chunk, state, unit);
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            Fade::weigh(params.delta.walk.layer, prepared, first, douts[tile]);
        }
        state.add(douts, stage.keys.k, first);

        const float error_unit = prepared.inverses.solve(errors, chunk);
        const bool whole = params.delta.errors.at != nullptr;
        if (whole) {
            store_betas(params, place, smem.errors[n % Stages], errors, error_unit, n, chunk);
        }
        Linear::multiply_columns(errors, prepared.inverses.beta + first, 1.f);
        const float update_unit = error_unit * fit_columns<Element>(errors);
        if (whole) {
            store_parts(params, place, errors, update_unit, n, chunk);
            Forward::store(params.delta.walk.out, params.delta, place, stage, errors, update_unit,
                           n, chunk);
        }
        multiply_halves(errors, -1.f, weight);
        Operands updates;
        to_operands<Element>(updates, errors);
        if (kNarrow<Element> && update_unit != 1.f) {
            state.multiply_by(inverse(update_unit));
        }
        state.add(updates, stage.keys.q, first);
        if (kNarrow<Element> && update_unit != 1.f) {
            state.multiply_by(update_unit);
        }
    }

    // errors += inflow * unit * G^T keys^T
    template <typename KeyTile, typename OfHalf>
    __device__ __forceinline__ static void add_read(Outputs& errors, const State& state,
                                                    const KeyTile& keys, const OfHalf& inflow,
                                                    float unit, int row) {
        Outputs read = {};
        state.read(read, keys, row);
        multiply_halves(read, unit, inflow);
#pragma unroll
        for (int i = 0; i < 8 * Tiles; ++i) {
            errors[i / 8][i / 4 % 2][i % 4] += read[i / 8][i / 4 % 2][i % 4];
        }
    }

    // Stores what the warp's channels add to the gradients of beta of a chunk of the n-th tile.
    __device__ __forceinline__ static void store_betas(const DeltaGradientParams& params,
                                                       const Place& place, const Values& values,
                                                       const Outputs& errors, float unit, int n,
                                                       int chunk) {
        Operands forward;
        values.load(forward, chunk);
        float sums[4] = {};  // of this lane's steps: two in each half
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float2 both = part<Element>(forward[tile][2 * half + i]);
                    sums[2 * half] += errors[tile][half][2 * i] * both.x;
                    sums[2 * half + 1] += errors[tile][half][2 * i + 1] * both.y;
                }
            }
        }
        // lanes 0 to 3 end up with the first of their four sums, lanes 8 to 11 with the second, ...
        sum_lanes<16, 4>(sums, lane_of_warp());
        const int own = lane_of_warp() / 8;
        const int step =
            n * Count + kChunk * chunk + 8 * (own / 2) + lane_column() + own % 2;
        if (lane_of_warp() % 8 < 4 && step < place.steps) {
            const int warp = place.channel / Values::kWarpChannels + warp_of_block();
            row_of<float>(params.betas, place, step)[warp * params.betas_stride] = sums[0] * unit;
        }
    }

    // Stores the gradients of the values in f32, if heads share values.
    __device__ __forceinline__ static void store_parts(const DeltaGradientParams& params,
                                                       const Place& place, const Outputs& outputs,
                                                       float unit, int n, int chunk) {
        if (params.parts.at == nullptr) {
            return;
        }
        const int channels =
            params.delta.walk.layer.dv - place.channel - Values::warp_channel() - lane_row();
        const int step = n * Count + kChunk * chunk + lane_column();
        float* to = row_of<float>(params.parts, place, step) + place.channel +
                    Values::warp_channel() + lane_row();
        const int64_t stride = stride_of(params.parts, place);
#pragma unroll
        for (int i = 0; i < 8 * Tiles; ++i) {
            const int down = 8 * (i / 4 % 2) + i % 2;
            const int right = 16 * (i / 8) + 8 * (i / 2 % 2);
            if (step + down < place.steps && right < channels) {
                to[down * stride + right] = outputs[i / 8][i / 4 % 2][i % 4] * unit;
            }
        }
    }
};

}  // namespace seqmix::linear_attention
