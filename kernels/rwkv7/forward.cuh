// From the first step to the last, with the state in registers: outputs, and what each step looked up.
//
//     y = S^T a,   S = diag(exp(decay)) S + b y^T + k v^T,   out = S^T r
//
// grid    x: slices of a head's values, then heads, then sequences
// block   takes a slice, with all channels of the keys
// thread  rwkv7/state.cuh says what it owns of the state; of each tile of steps it moves one piece
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "rwkv7/params.h"
#include "rwkv7/place.cuh"
#include "rwkv7/state.cuh"

namespace seqmix::rwkv7 {

// Columns: of a thread. With four, what is read of a step serves four times as many multiplications; with
// one, a head has four times as many blocks.
template <int Size, int Columns>
struct Forward {
    using State = rwkv7::State<Size, Columns>;
    static constexpr int kThreads = State::kThreads;
    static constexpr int kRows = State::kRows;
    static constexpr int kWidth = State::kWidth;

    struct Smem {
        alignas(16) float r[kSteps][Size];
        float decay[kSteps][Size];
        float k[kSteps][Size];
        float a[kSteps][Size];
        float b[kSteps][Size];
        float v[kSteps][kWidth];
        float out[kSteps][kWidth];
        float lookups[kSteps][kWidth];
    };

    __device__ __forceinline__ static void run(const ForwardParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Place place(layer);
        // an entry that does not exist marks a row of padding
        const int64_t entry = params.entries_of_rows == nullptr
                                  ? place.sequence
                                  : params.entries_of_rows[place.sequence];
        if (entry < 0 || entry >= params.entries) {
            return;
        }
        const int first = place.slice * kWidth;  // of the values
        State state;
        state.load(params.initial_state, place, entry, first);
        Stream<Size> r(layer.r, place, layer.dk, layer.dtype), k(layer.k, place, layer.dk, layer.dtype);
        Stream<Size> a(layer.a, place, layer.dk, layer.dtype), b(layer.b, place, layer.dk, layer.dtype);
        Stream<Size> decay(layer.decay, place, layer.dk, kF32);
        Stream<kWidth> v(layer.v, place, layer.dv, layer.dtype);
        const auto fetch = [&](int tile) {
            r.fetch(place, tile);
            k.fetch(place, tile);
            a.fetch(place, tile);
            b.fetch(place, tile);
            decay.fetch(place, tile);
            v.fetch(place, tile, first);
        };
        const int tiles = place.tiles();
        fetch(0);
#pragma unroll 1
        for (int tile = 0;; ++tile) {
            __syncthreads();  // all warps are done with the last tile, before it is stored and replaced
            if (tile > 0) {
                store(params, place, smem, tile - 1, first);
            }
            if (tile == tiles) {
                break;
            }
            r.put(smem.r);
            k.put(smem.k);
            a.put(smem.a);
            b.put(smem.b);
            put_decays(decay, smem.decay);
            v.put(smem.v);
            __syncthreads();  // the tile is there, and its predecessor's results are read, before warps use it
            fetch(tile + 1);
            const int steps = place.steps_of(tile);
#pragma unroll 1
            for (int step = 0; step < steps; ++step) {
                move(state, smem, step);
            }
        }
        state.store(params.final_state, place, entry, first);
    }

    // One step.
    __device__ __forceinline__ static void move(State& state, Smem& smem, int step) {
        float a[kRows], found[Columns] = {};
        state.load_rows(a, smem.a[step]);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < Columns; ++j) {
                found[j] = fmaf(a[i], state.x[i][j], found[j]);
            }
        }
        const int own = state.first_column + state.template sum_of_lane<Columns>();
        state.sum_rows(found);
        if (state.template first_with_sum<Columns>()) {
            smem.lookups[step][own] = found[0];
        }
        const float sum = found[0];
#pragma unroll
        for (int j = 0; j < Columns; ++j) {
            found[j] = state.template sum_from<Columns>(sum, j);
        }
        float decay[kRows], k[kRows], b[kRows], r[kRows], v[Columns], out[Columns] = {};
        state.load_rows(decay, smem.decay[step]);
        state.load_rows(k, smem.k[step]);
        state.load_rows(b, smem.b[step]);
        state.load_rows(r, smem.r[step]);
        state.load_columns(v, smem.v[step]);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < Columns; ++j) {
                float& x = state.x[i][j];
                x = fmaf(b[i], found[j], fmaf(k[i], v[j], decay[i] * x));
                out[j] = fmaf(r[i], x, out[j]);
            }
        }
        state.sum_rows(out);
        if (state.template first_with_sum<Columns>()) {
            smem.out[step][own] = out[0];
        }
    }

    // Writes what a tile's steps returned.
    __device__ __forceinline__ static void store(const ForwardParams& params, const Place& place,
                                                 const Smem& smem, int tile, int first) {
        const Layer& layer = place.layer;
        const Spot<kWidth> spot;
        if (!spot.exists() || spot.step >= place.steps_of(tile)) {
            return;
        }
        const Stream<kWidth> out(params.out, place, layer.dv, layer.dtype);
        out.store(place, tile, spot.get(smem.out), first);
        if (params.lookups.at != nullptr) {
            const Stream<kWidth> lookups(params.lookups, place, layer.dv, kF32);
            lookups.store(place, tile, spot.get(smem.lookups), first);
        }
    }
};

}  // namespace seqmix::rwkv7
