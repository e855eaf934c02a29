// What is done to the elements of a tile: taps, states, the activation.
#pragma once

#include <cstdint>

#include "causal_conv1d/params.h"
#include "causal_conv1d/tile.cuh"
#include "common/pointwise.cuh"
#include "common/warp.cuh"

namespace seqmix::causal_conv1d {

// Element `index` of a tensor of an ElementType.
__device__ __forceinline__ float load_number(const void* tensor, int64_t index, int type) {
    switch (type) {
        case kF16:
            return __half2float(static_cast<const __half*>(tensor)[index]);
        case kBf16:
            return __bfloat162float(static_cast<const __nv_bfloat16*>(tensor)[index]);
        default:
            return static_cast<const float*>(tensor)[index];
    }
}

__device__ __forceinline__ void store_number(void* tensor, int64_t index, int type, float number) {
    switch (type) {
        case kF16:
            static_cast<__half*>(tensor)[index] = __float2half_rn(number);
            break;
        case kBf16:
            static_cast<__nv_bfloat16*>(tensor)[index] = __float2bfloat16_rn(number);
            break;
        default:
            static_cast<float*>(tensor)[index] = number;
    }
}

// The weight that meets the input of `lag` steps ago; for a lag of the filter's width, the bias.
__device__ __forceinline__ float load_tap(const Filter& filter, int channel, int lag) {
    const bool bias = lag == filter.width;
    const void* tensor = bias ? filter.bias : filter.weight;
    const int64_t at = bias ? channel * filter.bias_stride
                            : channel * filter.weight_channel_stride +
                                  (filter.width - 1 - lag) * filter.weight_tap_stride;
    return tensor == nullptr ? 0.f : load_number(tensor, at, filter.dtype);
}

// Where a sequence's state of `age` steps before its first, or its end, lies. Ages are 1 to
// width - 1.
__device__ __forceinline__ int64_t state_offset(const State& state, int width, int64_t sequence,
                                                int channel, int age) {
    return sequence * state.sequence_stride + channel * state.channel_stride +
           (width - 1 - age) * state.step_stride;
}

// The bits there; those of 0 if there is no such state.
template <typename Element>
__device__ __forceinline__ Bits<Element> load_state(const State& state, int width, int sequence,
                                                    int channel, int age) {
    if (state.at == nullptr || sequence < 0 || age >= width) {
        return 0;
    }
    return static_cast<const Bits<Element>*>(
        state.at)[state_offset(state, width, sequence, channel, age)];
}

template <typename Element>
__device__ __forceinline__ void store_state(const State& state, int width, int sequence,
                                            int channel, int age, Bits<Element> bits) {
    static_cast<Bits<Element>*>(state.at)[state_offset(state, width, sequence, channel, age)] =
        bits;
}

// The weights of a tile's channels in shared memory, by lag, and their biases; 0 where a filter is
// narrower. Rows are as much longer than a multiple of the banks as lets a warp write weights in
// the order of channels and then taps, which is that of memory.
template <int Width, int Channels>
struct alignas(128) Taps {
    static constexpr int kPitch = Channels + 32 / Width;

    float of_lag[Width][kPitch];
    float bias[kPitch];

    __device__ __forceinline__ void load(const Filter& filter, int first_channel, int channels) {
#pragma unroll 1
        for (int i = thread_of_block(); i < Channels * Width; i += kThreads) {
            const int channel = i / Width, tap = i % Width;
            const bool exists = tap < filter.width && channel < channels;
            const int lag = tap < filter.width ? filter.width - 1 - tap : tap;
            of_lag[lag][channel] = exists ? load_tap(filter, first_channel + channel, lag) : 0.f;
        }
        for (int i = thread_of_block(); i < Channels; i += kThreads) {
            bias[i] = i < channels ? load_tap(filter, first_channel + i, filter.width) : 0.f;
        }
    }

    __device__ __forceinline__ void clear() {
#pragma unroll 1
        for (int i = thread_of_block(); i < (Width + 1) * kPitch; i += kThreads) {
            (i < Width * kPitch ? of_lag[i / kPitch] : bias)[i % kPitch] = 0.f;
        }
    }
};

// Those of one thread's channels, in registers.
template <int Width, int Channels>
struct ThreadTaps {
    // Narrower filters have kernels of their own.
    static constexpr int kWidthMin = Width > 4 ? 5 : 2;

    float of_lag[Width][Channels];
    float bias[Channels];

    template <int TileChannels>
    __device__ __forceinline__ void load(const Taps<Width, TileChannels>& taps, int channel) {
#pragma unroll
        for (int lag = 0; lag < Width; ++lag) {
            copy(of_lag[lag], taps.of_lag[lag] + channel);
        }
        copy(bias, taps.bias + channel);
    }

    // The sum of a channel at the step whose input is x[last].
    template <int Steps>
    __device__ __forceinline__ float sum(const float (&x)[Steps][Channels], int last, int c,
                                         int width) const {
        float sum = bias[c];
#pragma unroll
        for (int lag = 0; lag < Width; ++lag) {
            if (has(lag, width)) {
                sum += of_lag[lag][c] * x[last - lag][c];
            }
        }
        return sum;
    }

    // Whether filters have a tap of this lag: known when compiled for all but the widest.
    __device__ __forceinline__ static bool has(int lag, int width) {
        return lag < kWidthMin || lag < width;
    }

private:
    __device__ __forceinline__ static void copy(float (&to)[Channels], const float* from) {
        if constexpr (Channels == 2) {
            const float2 pair = *reinterpret_cast<const float2*>(from);
            to[0] = pair.x;
            to[1] = pair.y;
        } else {
            to[0] = from[0];
        }
    }
};

// The input `step` of a tile's line: of its sequence, which starts at step `start`, or of the
// sequence's state. Steps count from the tile's first.
template <typename Element, typename Tile, typename Shape>
__device__ __forceinline__ float input(Tile& tile, Shape shape, int step, int line, int start,
                                       const State& state, int width, int sequence, int channel) {
    return from_bits<Element>(
        step >= start ? tile.at(shape, step, line)
                      : load_state<Element>(state, width, sequence, channel, start - step));
}

// Writes the state of the sequence that a row begins with to the steps before the row, where the
// tile holds zeros: so its first windows are like all others.
template <typename Element, typename Tile, typename Shape>
__device__ __forceinline__ void plant_state(Tile& tile, Shape shape, const Place& place,
                                            const State& state, int width, int sequence) {
#pragma unroll 1
    for (int i = thread_of_block(); i < place.channels * (width - 1); i += kThreads) {
        const int line = i / (width - 1), age = 1 + i % (width - 1);
        tile.at(shape, -age, line) =
            load_state<Element>(state, width, sequence, place.channel + line, age);
    }
}

}  // namespace seqmix::causal_conv1d
