// Which channel and steps a thread works on, and where the numbers of both lie.
//
// grid    x: tiles of channels, of each sequence in turn; y: segments of a sequence
// thread  owns a channel: what a warp reads of a step lies side by side
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "rwkv4/average.cuh"
#include "rwkv4/params.h"

namespace seqmix::rwkv4 {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename Element>
__device__ __forceinline__ Element to_element(float x);
template <>
__device__ __forceinline__ float to_element<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __half to_element<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 to_element<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// The number of a channel in a row; `otherwise` if there are none.
__device__ __forceinline__ float load(const Rows& rows, int64_t row, int channel, float otherwise) {
    return rows.at == nullptr ? otherwise
                              : rows.at[row * rows.row_stride + channel * rows.channel_stride];
}

__device__ __forceinline__ void store(const Rows& rows, int64_t row, int channel, float x) {
    if (rows.at != nullptr) {
        rows.at[row * rows.row_stride + channel * rows.channel_stride] = x;
    }
}

// A channel's parameters. A decay of -infinity would make a NaN with an age of 0; this forgets as much.
__device__ __forceinline__ Channel load_channel(const Rows& decay, const Rows& bonus, int channel) {
    return {fmaxf(load(decay, 0, channel, 0.f), -1e30f), load(bonus, 0, channel, 0.f)};
}

// Some floats of each channel, by row of the workspace: those of neighbouring channels lie side by side.
template <int Count>
__device__ __forceinline__ void load_planes(float (&x)[Count], const float* from, int64_t row, int dim,
                                            int channel) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
        x[i] = from[(row * Count + i) * dim + channel];
    }
}

template <int Count>
__device__ __forceinline__ void store_planes(float* to, int64_t row, int dim, int channel,
                                             const float (&x)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
        to[(row * Count + i) * dim + channel] = x[i];
    }
}

__device__ __forceinline__ Average load_average(const float* from, int64_t row, int dim, int channel) {
    float x[kAverageFloats];
    load_planes(x, from, row, dim, channel);
    return {x[0], x[1], x[2], x[3]};
}

__device__ __forceinline__ void store_average(float* to, int64_t row, int dim, int channel,
                                              const Average& average) {
    const float x[kAverageFloats] = {average.numerator, average.denominator, average.base,
                                     average.age};
    store_planes(to, row, dim, channel, x);
}

// Values of cu_seqlens come from the device's memory, where nobody has checked them: they are clamped to
// the tensor's steps.
struct Place {
    const Layer& layer;
    int channel;
    int sequence;
    int batch;
    int start;  // steps of the sequence
    int end;
    int of_segment;  // steps of each of its segments but the last ones
    int segment;
    int first;  // steps of this segment
    int last;   // the one after

    __device__ __forceinline__ explicit Place(const Layer& layer) : layer(layer) {
        const int block = static_cast<int>(blockIdx.x);
        sequence = block / layer.channel_tiles;
        channel = (block - sequence * layer.channel_tiles) * kThreads + thread_of_block();
        if (layer.cu_seqlens == nullptr) {
            batch = sequence;
            start = 0;
            end = layer.seqlen;
        } else {
            batch = 0;
            start = min(max(layer.cu_seqlens[sequence], 0), layer.seqlen);
            end = min(max(layer.cu_seqlens[sequence + 1], start), layer.seqlen);
        }
        of_segment = (end - start + layer.segments - 1) / layer.segments;
        segment = static_cast<int>(blockIdx.y);
        first = bound(segment);
        last = bound(segment + 1);
    }

    __device__ __forceinline__ bool exists() const { return channel < layer.dim; }
    __device__ __forceinline__ int steps() const { return last - first; }

    // The first step of a segment of the sequence.
    __device__ __forceinline__ int bound(int of) const {
        return start + min(of * of_segment, end - start);
    }

    // A segment's row among those of all sequences.
    __device__ __forceinline__ int64_t row(int of) const {
        return int64_t{sequence} * layer.segments + of;
    }

    // Where the averages that enter this segment's groups of steps are kept. Rows come in the order of their
    // first steps, so that each has a slot more than groups that end in it.
    __device__ __forceinline__ int64_t slot() const {
        return int64_t{batch} * (layer.seqlen / kGroup) + first / kGroup + row(segment);
    }

    // The average that enters the sequence.
    __device__ __forceinline__ Average initial() const {
        Average average = nothing();
        average.numerator = load(layer.numerator, sequence, channel, average.numerator);
        average.denominator = load(layer.denominator, sequence, channel, average.denominator);
        average.base = load(layer.exponent, sequence, channel, average.base);
        return average;
    }

    // The average that enters this segment. Each thread joins those of the segments before: they are few, and
    // a kernel between two passes would take longer.
    __device__ __forceinline__ Average entering(const Channel& of) const {
        Average average = initial();
#pragma unroll 4
        for (int i = 0; i < segment; ++i) {
            const Average own = load_average(layer.ends, row(i), layer.dim, channel);
            average = join(of, average, own, static_cast<float>(bound(i + 1) - bound(i)));
        }
        return average;
    }
};

// Walks over the steps of one channel in a tensor.
template <typename Element>
struct Cursor {
    Element* at;
    int64_t stride;

    __device__ __forceinline__ Cursor(const Signal& signal, const Place& place, int step)
        : at(static_cast<Element*>(signal.at) + place.batch * signal.batch_stride +
             step * signal.step_stride + place.channel),
          stride(signal.step_stride) {}

    // Reads the next `count` steps.
    __device__ __forceinline__ void load(float (&x)[kGroup], int count) const {
        Element elements[kGroup];
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            if (i < count) {
                elements[i] = at[i * stride];
            }
        }
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            x[i] = i < count ? to_float(elements[i]) : 0.f;
        }
    }

    __device__ __forceinline__ void store(int step, float x) const {
        at[step * stride] = to_element<Element>(x);
    }

    __device__ __forceinline__ void move(int steps) { at += steps * stride; }
};

}  // namespace seqmix::rwkv4
