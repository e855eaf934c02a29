// The state of a warp's channels: in f32, in registers from the first step of a segment to the last.
//
// warp    owns 16 * Tiles neighbouring channels of a slice, each with all its states
// lane    holds two neighbouring states of two channels of each 16x8 part (common/mma.cuh)
//
// A 16x8 part of sums, packed in pairs, is an operand B of a product over states, two of them an
// operand A: no state passes through shared memory.
#pragma once

#include <cstdint>

#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "ssd/place.cuh"
#include "ssd/products.cuh"
#include "ssd/steps.cuh"

namespace seqmix::ssd {

template <typename Element_, int Size, int Tiles>
struct State {
    using Element = Element_;
    static constexpr int kChannels = 16 * Tiles;
    static constexpr int kParts = Size / 8;
    static_assert(kSlice<Element> % kChannels == 0, "a warp's channels belong to one slice");

    float values[Tiles][kParts][4];

    // The first channel of this lane in the warp's, and its first state.
    __device__ __forceinline__ static int lane_channel() { return lane_of_warp() / 4; }
    __device__ __forceinline__ static int lane_state() { return 2 * (lane_of_warp() % 4); }

    // Calls with(tile, part, half, offset) for each pair of states that exists: `channels` of the
    // warp's and `dstate` of all. `offset` is that of the pair from the warp's first channel.
    template <typename With>
    __device__ __forceinline__ static void for_each_pair(int channels, int dstate,
                                                         int64_t channel_stride, const With& with) {
        const int rows = channels - lane_channel();
        const int64_t offset = lane_channel() * channel_stride + lane_state();
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 16 * tile + 8 * half;
#pragma unroll
                for (int part = 0; part < kParts; ++part) {
                    if (row < rows && 8 * part < dstate) {  // dstate is a multiple of 8
                        with(tile, part, half, offset + row * channel_stride + 8 * part);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    values[tile][part][i] = 0.f;
                }
            }
        }
    }

    // Reads what exists; the rest stays as it is.
    __device__ __forceinline__ void load(const float* from, int channels, int dstate,
                                         int64_t channel_stride) {
        for_each_pair(channels, dstate, channel_stride,
                      [&](int tile, int part, int half, int64_t offset) {
                          const float2 pair = *reinterpret_cast<const float2*>(from + offset);
                          values[tile][part][2 * half] = pair.x;
                          values[tile][part][2 * half + 1] = pair.y;
                      });
    }

    __device__ __forceinline__ void store(float* to, int channels, int dstate,
                                          int64_t channel_stride) const {
        for_each_pair(channels, dstate, channel_stride,
                      [&](int tile, int part, int half, int64_t offset) {
                          *reinterpret_cast<float2*>(to + offset) =
                              make_float2(values[tile][part][2 * half],
                                          values[tile][part][2 * half + 1]);
                      });
    }

    __device__ __forceinline__ void multiply_by(float factor) {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    values[tile][part][i] *= factor;
                }
            }
        }
    }

    // The largest magnitude in the warp's states.
    __device__ __forceinline__ float largest() const {
        float x = 0.f;
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    x = fmaxf(x, fabsf(values[tile][part][i]));
                }
            }
        }
        return warp_max(x);
    }

    // Makes the state an operand: divides it by the power of two that is returned.
    __device__ __forceinline__ float fit() {
        if constexpr (!kNarrow<Element>) {
            return 1.f;
        }
        const float unit = excess(largest());
        if (unit != 1.f) {  // the same for the whole warp
            multiply_by(inverse(unit));
        }
        return unit;
    }

    // Stores the states divided by `unit`, rounded to operands of a product.
    __device__ __forceinline__ void store_operands(Element* to, int channels, int dstate,
                                                   float unit) const {
        const float factor = inverse(unit);
        for_each_pair(channels, dstate, dstate, [&](int tile, int part, int half, int64_t offset) {
            const float* pair = &values[tile][part][2 * half];
            *reinterpret_cast<Pair<Element>*>(to + offset) =
                join<Element>(pair[0] * factor, pair[1] * factor);
        });
    }

    // This lane's part of the sum of products with what store_operands wrote.
    __device__ __forceinline__ float dot(const Element* from, int channels, int dstate) const {
        float sum = 0.f;
        for_each_pair(channels, dstate, dstate, [&](int tile, int part, int half, int64_t offset) {
            const float2 other =
                seqmix::part<Element>(*reinterpret_cast<const Pair<Element>*>(from + offset));
            const float* pair = &values[tile][part][2 * half];
            sum += pair[0] * other.x + pair[1] * other.y;
        });
        return sum;
    }

    // The states 16 * step and following of the eight channels `column`, as an operand B whose rows
    // are states.
    __device__ __forceinline__ void operand(Pair<Element> (&b)[2], int step, int column) const {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float* pair = &values[column / 2][2 * step + i][column % 2 * 2];
            b[i] = join<Element>(pair[0], pair[1]);
        }
    }

    // To the end of a chunk: state = decay state + sum over steps of weight x b^T. `x` holds the
    // slice's channels, of which the warp's begin at `channel`, and `b` the group's coefficients, both
    // a row a step.
    template <typename ChannelTile, typename CoefficientTile>
    __device__ __forceinline__ void advance(const ChannelTile& x, int channel,
                                            const CoefficientTile& b, const float* weights,
                                            float decay) {
        multiply_by(decay);
        const auto x_operand = by_columns(x, 0, channel);
        const auto b_operand = by_rows(b, 0);
#pragma unroll 1
        for (int step = 0; step < kChunk<Element> / 16; ++step) {
            Pair<Element> a[Tiles][4];
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
                x_operand.load_transposed(a[tile], 16 * step, tile);
                weigh_columns<Element>(a[tile], weights + 16 * step);
            }
#pragma unroll
            for (int pair = 0; pair < kParts / 2; ++pair) {
                Pair<Element> coefficients[4];
                b_operand.load_transposed(coefficients, 16 * step, pair);
#pragma unroll
                for (int tile = 0; tile < Tiles; ++tile) {
                    multiply_pairs<Element>(values[tile][2 * pair], a[tile], coefficients[0],
                                            coefficients[1]);
                    multiply_pairs<Element>(values[tile][2 * pair + 1], a[tile], coefficients[2],
                                            coefficients[3]);
                }
            }
        }
    }
};

}  // namespace seqmix::ssd
