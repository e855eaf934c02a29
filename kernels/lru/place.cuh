// Which state and steps a thread works on, and where the numbers of both lie.
//
// grid    x: tiles of states, of each sequence in turn; y: segments of a sequence
// thread  owns a state: what a warp reads of a step lies side by side
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "lru/number.cuh"
#include "lru/params.h"

namespace seqmix::lru {

// A state's number in a row; 0 if there are none.
__device__ __forceinline__ float2 load(const Rows& rows, int64_t row, int state) {
    return rows.at == nullptr ? make_float2(0.f, 0.f) : rows.at[row * rows.row_stride + state];
}

__device__ __forceinline__ void store(const Rows& rows, int64_t row, int state, float2 x) {
    if (rows.at != nullptr) {
        rows.at[row * rows.row_stride + state] = x;
    }
}

// What belongs to a state at all steps.
struct Unit {
    float2 lambda;
    float gamma;

    __device__ __forceinline__ Unit(const float2* a, const float* gammas, int state)
        : lambda(exp_of(a[state])), gamma(gammas == nullptr ? 1.f : gammas[state]) {}

    // The state after a step with this input.
    __device__ __forceinline__ float2 after(float2 before, float2 x) const {
        return add_product(make_float2(gamma * x.x, gamma * x.y), lambda, before);
    }
};

// What a stretch of steps does to what enters it: it is multiplied by a factor, and something is added.
struct Stretch {
    float2 added;
    float2 factor;

    __device__ __forceinline__ static Stretch load(const float2* from, int64_t row, int states,
                                                   int state) {
        return {from[2 * row * states + state], from[(2 * row + 1) * states + state]};
    }
    __device__ __forceinline__ void store(float2* to, int64_t row, int states, int state) const {
        to[2 * row * states + state] = added;
        to[(2 * row + 1) * states + state] = factor;
    }
    __device__ __forceinline__ float2 after(float2 before) const {
        return add_product(added, factor, before);
    }
};

// Values of cu_seqlens come from the device's memory, where nobody has checked them: they are clamped to
// the tensor's steps.
struct Place {
    const Layer& layer;
    int state;
    int sequence;
    int batch;
    int start;  // steps of the sequence
    int end;
    int segment;
    int first;  // steps of this segment
    int last;   // the one after

    __device__ __forceinline__ explicit Place(const Layer& layer) : layer(layer) {
        const int block = static_cast<int>(blockIdx.x);
        sequence = block / layer.tiles;
        state = (block - sequence * layer.tiles) * kThreads + thread_of_block();
        if (layer.cu_seqlens == nullptr) {
            batch = sequence;
            start = 0;
            end = layer.seqlen;
        } else {
            batch = 0;
            start = min(max(layer.cu_seqlens[sequence], 0), layer.seqlen);
            end = min(max(layer.cu_seqlens[sequence + 1], start), layer.seqlen);
        }
        const int of_segment = (end - start + layer.segments - 1) / layer.segments;
        segment = static_cast<int>(blockIdx.y);
        first = start + min(segment * of_segment, end - start);
        last = start + min((segment + 1) * of_segment, end - start);
    }

    __device__ __forceinline__ bool exists() const { return state < layer.states; }
    __device__ __forceinline__ int steps() const { return last - first; }

    // A segment's row among those of all sequences.
    __device__ __forceinline__ int64_t row(int of) const {
        return int64_t{sequence} * layer.segments + of;
    }

    // Where the states that enter this segment's groups of steps are kept. Rows come in the order of their
    // first steps, so that each has a slot more than groups that end in it.
    __device__ __forceinline__ int64_t slot() const {
        return int64_t{batch} * (layer.seqlen / kGroup) + first / kGroup + row(segment);
    }

    // The state that enters this segment. Each thread passes through the segments before: they are few, and
    // a kernel between two passes would take longer.
    __device__ __forceinline__ float2 entering() const {
        float2 number = load(layer.initial, sequence, state);
#pragma unroll 4
        for (int i = 0; i < segment; ++i) {
            number = Stretch::load(layer.ends, row(i), layer.states, state).after(number);
        }
        return number;
    }
};

// Walks over the steps of one state in a tensor.
template <typename Element>
struct Cursor {
    using Pair = PairOf<Element>;
    using Bits = typename Pair::Bits;

    Bits* at;
    int64_t stride;

    __device__ __forceinline__ Cursor(const Signal& signal, const Place& place, int step)
        : at(static_cast<Bits*>(signal.at) + place.batch * signal.batch_stride +
             step * signal.step_stride + place.state),
          stride(signal.step_stride) {}

    // Reads the next `count` steps.
    __device__ __forceinline__ void load(float2 (&x)[kGroup], int count) const {
        Bits bits[kGroup] = {};
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            if (i < count) {
                bits[i] = at[i * stride];
            }
        }
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            x[i] = Pair::widen(bits[i]);
        }
    }

    __device__ __forceinline__ void store(int step, float2 x) const {
        at[step * stride] = Pair::narrow(x);
    }

    __device__ __forceinline__ void move(int steps) { at += steps * stride; }
};

}  // namespace seqmix::lru
