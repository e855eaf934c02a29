// From the first step to the last once more, with the state in registers: the gradients that need it.
//
//     da = S dy,   S = diag(exp(decay)) S + b y^T + k v^T,   dr = S dout
//
// y and dy are known, so no step waits for a sum. The gradient of decays is not a sum over the state and its
// gradient at each step, of which one would have to be kept for all steps. Let E be that sum where a step
// begins, over the columns of a row; the step's parts of it are known:
//
//     ddecay = E - a da,     E of the next step = ddecay + k dk + b db - r dr
//
// E is summed anew before each span of steps, from the gradients that rwkv7/backward.cuh kept.
//
// grid    x: heads, then sequences
// block   takes a head
// thread  as rwkv7/forward.cuh
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "rwkv7/backward.cuh"
#include "rwkv7/params.h"
#include "rwkv7/place.cuh"
#include "rwkv7/state.cuh"

namespace seqmix::rwkv7 {

template <int Size>
struct Replay {
    static constexpr int kColumns = 4;
    using State = rwkv7::State<Size, kColumns>;
    static constexpr int kThreads = State::kThreads;
    static constexpr int kRows = State::kRows;
    static constexpr int kWarps = State::kWarps;

    struct Smem {
        alignas(16) float decay[kSteps][Size];
        float k[kSteps][Size];
        float b[kSteps][Size];
        float v[kSteps][Size];
        float dout[kSteps][Size];
        float lookups[kSteps][Size];
        float dlookups[kSteps][Size];
        float changes[kSteps][Size];          // of E from a step to the next
        float sums[kWarps][kSteps][2][Size];  // over a warp's columns: dr and da
    };

    // What only a thread that moves a piece needs of a tile, and when its steps are done.
    struct Late {
        Stream<Size> r;
        Stream<Size> a;
        Stream<Size> rest;  // k dk + b db
    };

    __device__ __forceinline__ static void run(const BackwardParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Place place(layer);
        State state;
        state.load(params.initial_state, place, place.sequence, 0);
        Stream<Size> k(layer.k, place, layer.dk, layer.dtype), b(layer.b, place, layer.dk, layer.dtype);
        Stream<Size> decay(layer.decay, place, layer.dk, kF32);
        Stream<Size> v(layer.v, place, layer.dv, layer.dtype);
        Stream<Size> dout(params.dout, place, layer.dv, layer.dtype);
        Stream<Size> lookups(params.lookups, place, layer.dv, kF32);
        Stream<Size> dlookups(params.dlookups, place, layer.dv, kF32);
        const auto fetch = [&](int tile) {
            k.fetch(place, tile);
            b.fetch(place, tile);
            decay.fetch(place, tile);
            v.fetch(place, tile);
            dout.fetch(place, tile);
            lookups.fetch(place, tile);
            dlookups.fetch(place, tile);
        };
        Late late = {Stream<Size>(layer.r, place, layer.dk, layer.dtype),
                     Stream<Size>(layer.a, place, layer.dk, layer.dtype),
                     Stream<Size>(params.ddecay, place, layer.dk, kF32)};
        float4 e = make_float4(0.f, 0.f, 0.f, 0.f);  // of the channels of the thread's piece
        float4 da = e;
        const int tiles = place.tiles();
        fetch(0);
#pragma unroll 1
        for (int tile = 0;; ++tile) {
            __syncthreads();  // all warps are done with the last tile, before it is stored and replaced
            if (tile > 0) {
                da = store(params, place, smem, late, tile - 1);
            }
            if (tile < tiles) {
                k.put(smem.k);
                b.put(smem.b);
                put_decays(decay, smem.decay);
                v.put(smem.v);
                dout.put(smem.dout);
                lookups.put(smem.lookups);
                dlookups.put(smem.dlookups);
            }
            __syncthreads();  // the tile is there, and the changes of the last one, before they are used
            if (tile > 0) {
                store_decays(late, place, smem, e, da, tile - 1);
            }
            if (tile == tiles) {
                break;
            }
            if (tile % kSpanTiles == 0) {
                e = begin_span(params, place, smem, state, tile / kSpanTiles);
            }
            late.r.fetch(place, tile);
            late.a.fetch(place, tile);
            late.rest.fetch(place, tile);
            fetch(tile + 1);
            const int steps = place.steps_of(tile);
#pragma unroll 1
            for (int step = 0; step < steps; ++step) {
                move(state, smem, step);
            }
        }
    }

    // One step, by some rows at a time: sums of more would not fit the registers.
    __device__ __forceinline__ static void move(State& state, Smem& smem, int step) {
        constexpr int kTogether = kRows < 8 ? kRows : 8;
        float v[kColumns], y[kColumns], dout[kColumns], dy[kColumns];
        state.load_columns(v, smem.v[step]);
        state.load_columns(y, smem.lookups[step]);
        state.load_columns(dout, smem.dout[step]);
        state.load_columns(dy, smem.dlookups[step]);
#pragma unroll
        for (int first = 0; first < kRows; first += kTogether) {
            float sums[2 * kTogether];  // dr, then da
            float decay[kTogether], k[kTogether], b[kTogether];
            state.load_rows(decay, smem.decay[step], first);
            state.load_rows(k, smem.k[step], first);
            state.load_rows(b, smem.b[step], first);
#pragma unroll
            for (int i = 0; i < kTogether; ++i) {
                sums[i] = 0.f;
                sums[kTogether + i] = 0.f;
#pragma unroll
                for (int j = 0; j < kColumns; ++j) {
                    float& x = state.x[first + i][j];
                    sums[kTogether + i] = fmaf(x, dy[j], sums[kTogether + i]);
                    x = fmaf(b[i], y[j], fmaf(k[i], v[j], decay[i] * x));
                    sums[i] = fmaf(x, dout[j], sums[i]);
                }
            }
            state.template sum_columns<2>(smem.sums[state.warp][step][0], sums, first);
        }
    }

    // E before a span of steps: for each row, the sum of the state times its gradient.
    __device__ __forceinline__ static float4 begin_span(const BackwardParams& params, const Place& place,
                                                        Smem& smem, const State& state, int span) {
        const float4* from = span_of<Size>(params, place, span);
        float sums[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            if (i % kPiece == 0) {
                __syncwarp();  // four are on their way: more would take registers
            }
            const float4 g = floats_of(load_global16(from + i * kThreads)), x = state.get(i);
            sums[i] = fmaf(g.x, x.x, fmaf(g.y, x.y, fmaf(g.z, x.z, g.w * x.w)));
        }
        state.template sum_columns<1>(smem.sums[state.warp][0][0], sums, 0);
        __syncthreads();  // the sums of all warps are there, before they are added
        constexpr int kOfWarp = kSteps * 2 * Size;
        const float4 e = sum_of_warps<kWarps>(&smem.sums[0][0][0][Spot<Size>().channel], kOfWarp);
        __syncthreads();  // they are read, before the steps' own replace them
        return e;
    }

    // Adds up what warps have of a tile, writes two gradients, and leaves what its steps change of E. Returns
    // a da.
    __device__ __forceinline__ static float4 store(const BackwardParams& params, const Place& place,
                                                   Smem& smem, const Late& late, int tile) {
        const Layer& layer = place.layer;
        const Spot<Size> spot;
        if (spot.step >= place.steps_of(tile)) {
            const float4 zeros = make_float4(0.f, 0.f, 0.f, 0.f);
            spot.put(smem.changes, zeros);
            return zeros;
        }
        constexpr int kOfWarp = kSteps * 2 * Size;
        const float4 dr = sum_of_warps<kWarps>(&smem.sums[0][spot.step][0][spot.channel], kOfWarp);
        const float4 da = sum_of_warps<kWarps>(&smem.sums[0][spot.step][1][spot.channel], kOfWarp);
        Stream<Size>(params.dr, place, layer.dk, layer.dtype).store(place, tile, dr);
        Stream<Size>(params.da, place, layer.dk, layer.dtype).store(place, tile, da);
        const float4 r = late.r.numbers(), a = late.a.numbers(), rest = late.rest.numbers();
        const float4 own = make_float4(a.x * da.x, a.y * da.y, a.z * da.z, a.w * da.w);
        spot.put(smem.changes,
                 make_float4(fmaf(-r.x, dr.x, rest.x) - own.x, fmaf(-r.y, dr.y, rest.y) - own.y,
                             fmaf(-r.z, dr.z, rest.z) - own.z, fmaf(-r.w, dr.w, rest.w) - own.w));
        return own;
    }

    // Writes the gradients of a tile's decays, and moves E on to the next one.
    __device__ __forceinline__ static void store_decays(const Late& late, const Place& place,
                                                        const Smem& smem, float4& e, const float4& own,
                                                        int tile) {
        const Spot<Size> spot;
        float4 before = e;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            if (step == spot.step) {
                before = e;
            }
            const float4 change = load_shared4(&smem.changes[step][spot.channel]);
            e.x += change.x, e.y += change.y, e.z += change.z, e.w += change.w;
        }
        late.rest.store(place, tile,
                        make_float4(before.x - own.x, before.y - own.y, before.z - own.z,
                                    before.w - own.w));
    }
};

}  // namespace seqmix::rwkv7
