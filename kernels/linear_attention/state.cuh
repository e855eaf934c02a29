// The state of a warp's channels: in f32, in registers from the first step of a segment to the last.
//
// warp    owns 16 * Tiles neighbouring channels of the values, each with all channels of the keys
// lane    holds two neighbouring channels of the keys of two channels of the values of each 16x8 part
//         (common/mma.cuh): the state transposed
//
// Two 16x8 parts of sums, packed in pairs, are an operand A of a product over channels of the keys: no
// state passes through shared memory, and nothing of a warp's channels does but values and outputs.
#pragma once

#include <cstdint>

#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/params.h"

namespace seqmix::linear_attention {

// The first row of this lane in a 16x8 product, and its first column.
__device__ __forceinline__ int lane_row() { return lane_of_warp() / 4; }
__device__ __forceinline__ int lane_column() { return 2 * (lane_of_warp() % 4); }

// A number for each of 16 steps, two neighbours for each half: those of the columns that this lane
// has in a 16x16 product.
__device__ __forceinline__ float2 of_columns(const float* numbers, int half) {
    return *reinterpret_cast<const float2*>(numbers + 8 * half + lane_column());
}

// Multiplies the columns of an operand A, of which there are 16, by weights.
template <typename Element>
__device__ __forceinline__ void weigh_columns(Pair<Element> (&a)[4], const float* weights) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float2 weight = of_columns(weights, half);
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
            const float2 pair = part<Element>(a[i]);
            a[i] = join<Element>(pair.x * weight.x, pair.y * weight.y);
        }
    }
}

template <typename Element_, int Size, int Tiles>
struct State {
    using Element = Element_;
    static constexpr int kChannels = 16 * Tiles;
    static constexpr int kParts = Size / 8;

    // Outputs of 16 steps, transposed as the state: a column for each step.
    using Outputs = float[Tiles][2][4];
    // Values, or what the delta rule makes of them: an operand A with a column for each of 16 steps.
    using Values = Pair<Element>[Tiles][4];

    float values[Tiles][kParts][4];

    // Calls with(number, address) for each number that exists: `channels` of the warp's and `dk`. The
    // warp's first channel is at `at`.
    template <typename With>
    __device__ __forceinline__ void for_each(float* at, const States& states, int channels, int dk,
                                             const With& with) {
        const int rows = channels - lane_row();
        const int columns = dk - lane_column();
        at += lane_row() * states.value_stride + lane_column() * states.key_stride;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            if (part % 4 == 0) {
                __syncwarp();  // 16 accesses are on their way: addresses of more take registers
            }
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int row = 16 * tile + 8 * (i / 2);
                    if (row < rows && 8 * part + i % 2 < columns) {
                        with(values[tile][part][i],
                             at + row * states.value_stride + i % 2 * states.key_stride);
                    }
                }
            }
            at += 8 * states.key_stride;
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

    // 1 where a channel of the keys is that of the values, of which `first` is the warp's first one.
    __device__ __forceinline__ void make_identity(int first) {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int part = 0; part < kParts; ++part) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int channel = first + 16 * tile + 8 * (i / 2) + lane_row();
                    values[tile][part][i] = channel == 8 * part + lane_column() + i % 2 ? 1.f : 0.f;
                }
            }
        }
    }

    // Reads what exists of the states at `from`; the rest stays as it is.
    __device__ __forceinline__ void load(float* from, const States& states, int channels, int dk) {
        for_each(from, states, channels, dk, [](float& number, const float* at) { number = *at; });
    }

    __device__ __forceinline__ void store(float* to, const States& states, int channels, int dk) {
        for_each(to, states, channels, dk, [](const float& number, float* at) { *at = number; });
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

    // Multiplies each channel of the keys by a number of its own, of `Size` in shared memory.
    __device__ __forceinline__ void multiply_keys(const float* factors) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const float2 both = *reinterpret_cast<const float2*>(factors + 8 * part + lane_column());
#pragma unroll
            for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    values[tile][part][i] *= i % 2 == 0 ? both.x : both.y;
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

    // The channels 16 * step and following of the keys, as an operand A whose columns they are.
    __device__ __forceinline__ void operand(Pair<Element> (&a)[4], int tile, int step) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* pair = &values[tile][2 * step + i / 2][i % 2 * 2];
            a[i] = join<Element>(pair[0], pair[1]);
        }
    }

    // outputs += S^T rows^T, of the 16 rows of `tile` from `row` on, which are queries, or by the delta
    // rule keys.
    template <typename KeyTile>
    __device__ __forceinline__ void read(Outputs& outputs, const KeyTile& tile, int row) const {
        const auto rows = by_columns(tile, 0);
#pragma unroll
        for (int step = 0; step < Size / 16; ++step) {
            Pair<Element> b[4];
            rows.load(b, row, step);
#pragma unroll
            for (int i = 0; i < Tiles; ++i) {
                Pair<Element> a[4];
                operand(a, i, step);
                multiply_pairs<Element>(outputs[i][0], a, b[0], b[1]);
                multiply_pairs<Element>(outputs[i][1], a, b[2], b[3]);
            }
        }
    }

    // S^T += u^T keys, of the 16 rows of `tile` from `row` on.
    template <typename KeyTile>
    __device__ __forceinline__ void add(const Values& u, const KeyTile& tile, int row) {
        const auto keys = by_rows(tile, 0);
#pragma unroll
        for (int pair = 0; pair < kParts / 2; ++pair) {
            Pair<Element> b[4];
            keys.load_transposed(b, row, pair);
#pragma unroll
            for (int i = 0; i < Tiles; ++i) {
                multiply_pairs<Element>(values[i][2 * pair], u[i], b[0], b[1]);
                multiply_pairs<Element>(values[i][2 * pair + 1], u[i], b[2], b[3]);
            }
        }
    }
};

}  // namespace seqmix::linear_attention
