// From the last step to the first, with the gradient of the state in registers: all gradients that need no
// state.
//
//     G += r dout^T,   db = G y,   dk = G v,   dv = G^T k,   dy = G^T b,   G = diag(exp(decay)) G + a dy^T
//
// y is what a step looked up. rwkv7/replay.cuh finds the others; it gets dy, each step's k dk + b db, and G
// before each span of steps.
//
// grid    x: heads, then sequences
// block   takes a head
// thread  as rwkv7/forward.cuh
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "rwkv7/params.h"
#include "rwkv7/place.cuh"
#include "rwkv7/state.cuh"

namespace seqmix::rwkv7 {

// Where a block keeps a gradient of the state: each thread's rows lie a block's width of threads apart.
template <int Size>
__device__ __forceinline__ float4* span_of(const BackwardParams& params, const Place& place, int span) {
    const int64_t at = (place.first_span() + span) * params.layer.heads + place.head;
    return reinterpret_cast<float4*>(params.spans + at * Size * Size) + thread_of_block();
}

template <int Size>
struct Backward {
    static constexpr int kColumns = 4;
    using State = rwkv7::State<Size, kColumns>;
    static constexpr int kThreads = State::kThreads;
    static constexpr int kRows = State::kRows;
    static constexpr int kWarps = State::kWarps;

    struct Smem {
        alignas(16) float r[kSteps][Size];
        float decay[kSteps][Size];
        float k[kSteps][Size];
        float a[kSteps][Size];
        float b[kSteps][Size];
        float dout[kSteps][Size];
        float v[kSteps][Size];        // dv takes its place
        float lookups[kSteps][Size];  // and dy that of y
        float sums[kWarps][kSteps][2][Size];  // over a warp's columns: dk and db
    };

    __device__ __forceinline__ static void run(const BackwardParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Place place(layer);
        State g;
        g.load(params.dfinal_state, place, place.sequence, 0);
        Stream<Size> r(layer.r, place, layer.dk, layer.dtype), k(layer.k, place, layer.dk, layer.dtype);
        Stream<Size> a(layer.a, place, layer.dk, layer.dtype), b(layer.b, place, layer.dk, layer.dtype);
        Stream<Size> decay(layer.decay, place, layer.dk, kF32);
        Stream<Size> v(layer.v, place, layer.dv, layer.dtype);
        Stream<Size> dout(params.dout, place, layer.dv, layer.dtype);
        Stream<Size> lookups(params.lookups, place, layer.dv, kF32);
        const auto fetch = [&](int tile) {
            r.fetch(place, tile);
            k.fetch(place, tile);
            a.fetch(place, tile);
            b.fetch(place, tile);
            decay.fetch(place, tile);
            v.fetch(place, tile);
            dout.fetch(place, tile);
            lookups.fetch(place, tile);
        };
        const int tiles = place.tiles();
        if (tiles > 0) {
            fetch(tiles - 1);
        }
#pragma unroll 1
        for (int tile = tiles - 1;; --tile) {
            __syncthreads();  // all warps are done with the last tile, before it is stored and replaced
            if (tile + 1 < tiles) {
                store(params, place, smem, tile + 1);
            }
            if (tile < 0) {
                break;
            }
            r.put(smem.r);
            k.put(smem.k);
            a.put(smem.a);
            b.put(smem.b);
            put_decays(decay, smem.decay);
            v.put(smem.v);
            dout.put(smem.dout);
            lookups.put(smem.lookups);
            __syncthreads();  // the tile is there, and sums of the last one are read, before warps use it
            if (tile > 0) {
                fetch(tile - 1);
            }
#pragma unroll 1
            for (int step = place.steps_of(tile) - 1; step >= 0; --step) {
                move(g, smem, step);
            }
            if (tile % kSpanTiles == 0) {
                float4* to = span_of<Size>(params, place, tile / kSpanTiles);
#pragma unroll
                for (int i = 0; i < kRows; ++i) {
                    store_global16(to + i * kThreads, bits_of(g.get(i)));
                }
            }
        }
        g.store(params.dinitial_state, place, place.sequence, 0);
    }

    // One step.
    __device__ __forceinline__ static void move(State& g, Smem& smem, int step) {
        float sums[2 * kRows];               // over columns: dk, then db
        float products[2 * kColumns] = {};   // over rows: dv, then dy
        {
            float r[kRows], k[kRows], b[kRows], v[kColumns], y[kColumns], dout[kColumns];
            g.load_rows(r, smem.r[step]);
            g.load_rows(k, smem.k[step]);
            g.load_rows(b, smem.b[step]);
            g.load_columns(v, smem.v[step]);
            g.load_columns(y, smem.lookups[step]);
            g.load_columns(dout, smem.dout[step]);
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                sums[i] = 0.f;
                sums[kRows + i] = 0.f;
#pragma unroll
                for (int j = 0; j < kColumns; ++j) {
                    float& x = g.x[i][j];
                    x = fmaf(r[i], dout[j], x);
                    sums[i] = fmaf(x, v[j], sums[i]);
                    sums[kRows + i] = fmaf(x, y[j], sums[kRows + i]);
                    products[j] = fmaf(x, k[i], products[j]);
                    products[kColumns + j] = fmaf(x, b[i], products[kColumns + j]);
                }
            }
        }
        g.template sum_columns<2>(smem.sums[g.warp][step][0], sums, 0);
        g.sum_rows(products);
        const float sum = products[0];
        __syncwarp();  // all lanes have read the values of their columns, before gradients take their place
        const int which = g.template sum_of_lane<2 * kColumns>();
        if (which < kColumns) {
            smem.v[step][g.first_column + which] = sum;
        } else {
            smem.lookups[step][g.first_column + which - kColumns] = sum;
        }
        float decay[kRows], a[kRows], dy[kColumns];
        g.load_rows(decay, smem.decay[step]);
        g.load_rows(a, smem.a[step]);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
            dy[j] = g.template sum_from<2 * kColumns>(sum, kColumns + j);
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
            for (int j = 0; j < kColumns; ++j) {
                g.x[i][j] = fmaf(a[i], dy[j], decay[i] * g.x[i][j]);
            }
        }
    }

    // Adds up what warps have of a tile, and writes its gradients.
    __device__ __forceinline__ static void store(const BackwardParams& params, const Place& place,
                                                 const Smem& smem, int tile) {
        const Layer& layer = place.layer;
        const Spot<Size> spot;
        if (spot.step >= place.steps_of(tile)) {
            return;
        }
        constexpr int kOfWarp = kSteps * 2 * Size;
        const auto rows = [&](const Rows& rows, int channels, int dtype, const float4& x) {
            Stream<Size>(rows, place, channels, dtype).store(place, tile, x);
        };
        rows(params.dv, layer.dv, layer.dtype, spot.get(smem.v));
        rows(params.dlookups, layer.dv, kF32, spot.get(smem.lookups));
        const float4 dk = sum_of_warps<kWarps>(&smem.sums[0][spot.step][0][spot.channel], kOfWarp);
        rows(params.dk, layer.dk, layer.dtype, dk);
        const float4 db = sum_of_warps<kWarps>(&smem.sums[0][spot.step][1][spot.channel], kOfWarp);
        rows(params.db, layer.dk, layer.dtype, db);
        const float4 k = spot.get(smem.k), b = spot.get(smem.b);
        rows(params.ddecay, layer.dk, kF32,
             make_float4(fmaf(k.x, dk.x, b.x * db.x), fmaf(k.y, dk.y, b.y * db.y),
                         fmaf(k.z, dk.z, b.z * db.z), fmaf(k.w, dk.w, b.w * db.w)));
    }
};

}  // namespace seqmix::rwkv7
