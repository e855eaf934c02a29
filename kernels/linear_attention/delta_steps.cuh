// What the delta rule prepares of a tile of steps, where decays are a number a step.
//
// Keys and queries stay as they were read: what is found for keys, and what is written, are multiplied by
// decays on the side of the values.
#pragma once

#include <cstdint>

#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/delta_params.h"
#include "linear_attention/inverse.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"
#include "linear_attention/prepare.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/steps.cuh"

namespace seqmix::linear_attention {

// What the keys of the delta rule are in a walk.
enum class DeltaWalk {
    Outputs,    // its keys: queries read what they made
    Gradients,  // its queries: from the last step on, what was read of the state adds to its gradient
};

// The beta of step `step` of the walk; steps that do not exist update nothing.
template <typename Element>
__device__ __forceinline__ float load_beta(const DeltaParams& params, const Place& place, int step) {
    return step < place.steps ? seqmix::load(row_of<const Element>(params.beta, place, step)) : 0.f;
}

template <typename Element_, int Size, int Count, DeltaWalk Kind>
struct DeltaSteps {
    using Element = Element_;
    using Prepare = seqmix::linear_attention::Prepare<Element, Size, Count, Gate::Step>;
    using KeyTile = typename Prepare::KeyTile;
    using Stage = typename Prepare::Stage;

    struct Smem : Prepare::Smem {
        Inverses<Element, Count> inverses;
    };

    // Fills what must not be read before it is written, before the first barrier.
    __device__ __forceinline__ static void begin(Smem&) {}

    // What is read of the warp's chunk while a tile is on its way: of this lane's step.
    struct Ahead {
        float exponent;
        float beta;
    };
    __device__ __forceinline__ static Ahead load(const DeltaParams& params, const Place& place, int n) {
        return {Prepare::load(params.walk.layer, place, n * Count),
                load_beta<Element>(params, place,
                                   n * Count + Prepare::first() + lane_of_warp() % kChunk)};
    }

    // Makes what all warps need of this warp's chunk, of a tile with `rows` steps left.
    __device__ __forceinline__ static void prepare(const WalkParams& params, Smem& smem, Stage& stage,
                                                   Mode mode, const Ahead& ahead, int rows) {
        Prepare::run(params, smem, stage, mode, ahead.exponent, rows);
        if (Prepare::chunk() >= Prepare::kChunks) {
            return;
        }
        const KeyTile& keys = Kind == DeltaWalk::Outputs ? stage.k : stage.q;
        Products overlaps = {};
        multiply_rows<Size>(overlaps, keys, keys, Prepare::first());
        for_each_score(overlaps, [&](float& overlap, int i, int j) {
            overlap *= smem.decays.between(Prepare::first() + i, Prepare::first() + j);
        });
        smem.inverses.prepare(overlaps, Prepare::chunk(), ahead.beta);
    }

    // Keys as they meet the state before their chunk.
    __device__ __forceinline__ static const KeyTile& lookups(const Smem&, const KeyTile& keys) {
        return keys;
    }
    // What multiplies that which two steps of a half of a chunk read of the state before it.
    __device__ __forceinline__ static float2 inflow(const Smem& smem, int first, int half) {
        return of_columns(smem.decays.inflow + first, half);
    }
    // And what they write.
    __device__ __forceinline__ static float2 weight(const Smem& smem, int first, int half) {
        return of_columns(smem.decays.weight + first, half);
    }
    // Multiplies what all steps of a chunk write by their weights and by the scale.
    __device__ __forceinline__ static void weigh(const Layer& layer, const Smem& smem, int first,
                                                 Pair<Element> (&values)[4]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float2 both = weight(smem, first, half);
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                const float2 pair = part<Element>(values[i]);
                values[i] = join<Element>(pair.x * (both.x * layer.scale),
                                          pair.y * (both.y * layer.scale));
            }
        }
    }

    // Multiplies the state by the decays of a chunk, and by a factor.
    template <typename State>
    __device__ __forceinline__ static void fade(const Smem& smem, int chunk, State& state,
                                                float factor) {
        const float decay = smem.decays.decay[chunk] * factor;
        if (decay != 1.f) {  // the same for all threads but for a warp's units
            state.multiply_by(decay);
        }
    }

    // Multiplies the state by the decay behind the walk. All threads, after the last chunk.
    template <typename State>
    __device__ __forceinline__ static void leave(const Layer& layer, const Place& place, Smem& smem,
                                                 State& state) {
        __syncthreads();  // all have read the last chunk's decays, before they are overwritten
        Prepare::find_end(layer, place, smem);
        __syncthreads();  // the decay behind the walk, before it is read
        state.multiply_by(smem.decays.decay[0]);
    }
};

}  // namespace seqmix::linear_attention
