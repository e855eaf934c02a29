// What becomes of a product: d = activation(alpha a b + beta c + bias) + residual, eight
// neighbours of a row at a time.
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "gemm/params.h"

namespace seqmix::gemm {

// src/abi/gemm.rs has the same numbers.
enum OutputType { kF16 = 0, kBf16 = 1, kF32 = 2 };
enum Activation { kNone = 0, kRelu = 1, kGeluTanh = 2, kGeluErf = 3, kSilu = 4 };

constexpr int kChunk = 8;

// x / (1 + e^-y)
__device__ __forceinline__ float gate(float x, float y) {
    constexpr float kLog2e = 1.4426950408889634f;
    return x * reciprocal_approx(1.f + exp2_approx(-kLog2e * y));
}

__device__ __forceinline__ float activate(float x, int activation) {
    switch (activation) {
        case kRelu:
            return x < 0.f ? 0.f : x;  // a NaN stays
        case kGeluTanh: {
            // 0.5 (1 + tanh u) = 1 / (1 + e^-2u),  u = sqrt(2/pi) (x + 0.044715 x^3)
            constexpr float kTwiceRoot = 1.5957691216057308f;
            return gate(x, kTwiceRoot * (x + 0.044715f * x * x * x));
        }
        case kGeluErf:
            return 0.5f * x * (1.f + erff(x * 0.7071067811865476f));
        case kSilu:
            return gate(x, x);
        default:
            return x;
    }
}

// The eight elements at `from`, those from `count` on as 0. 16 bytes at once if `vector`.
template <typename Element>
__device__ __forceinline__ void load_chunk(float (&x)[kChunk], const Element* from, int count,
                                           bool vector) {
    if (vector && count >= kChunk) {
        const uint4 words = *reinterpret_cast<const uint4*>(from);
        unpack<Element>(x[0], x[1], words.x);
        unpack<Element>(x[2], x[3], words.y);
        unpack<Element>(x[4], x[5], words.z);
        unpack<Element>(x[6], x[7], words.w);
    } else {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] = i < count ? static_cast<float>(from[i]) : 0.f;
        }
    }
}

// Rounds the first `count` of eight numbers to 16-bit elements.
template <typename Element>
__device__ __forceinline__ void store_chunk(Element* to, const float (&x)[kChunk], int count,
                                            bool vector) {
    if (vector && count >= kChunk) {
        *reinterpret_cast<uint4*>(to) =
            make_uint4(pack<Element>(x[0], x[1]), pack<Element>(x[2], x[3]),
                       pack<Element>(x[4], x[5]), pack<Element>(x[6], x[7]));
    } else {
        auto* bits = reinterpret_cast<uint16_t*>(to);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            if (i < count) {
                bits[i] = static_cast<uint16_t>(pack<Element>(x[i], 0.f));
            }
        }
    }
}

// The same without rounding.
template <>
__device__ __forceinline__ void store_chunk<float>(float* to, const float (&x)[kChunk], int count,
                                                   bool vector) {
    if (vector && count >= kChunk) {
        reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
        reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
    } else {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            if (i < count) {
                to[i] = x[i];
            }
        }
    }
}

// Turns the products of columns `column` to `column + count` of one row into results. `count` may
// exceed eight.
template <typename Element>
__device__ __forceinline__ void finish_chunk(const MultiplyParams& params, float (&x)[kChunk],
                                             int64_t batch, int64_t row, int column, int count) {
    float other[kChunk];
    const auto source = [&](const void* tensor, int64_t batch_stride, int64_t row_stride) {
        return static_cast<const Element*>(tensor) + batch * batch_stride + row * row_stride +
               column;
    };
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        x[i] *= params.alpha;
    }
    if (params.c != nullptr) {
        load_chunk(other, source(params.c, params.c_batch_stride, params.c_row_stride), count,
                   params.c_vector);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] += params.beta * other[i];
        }
    }
    if (params.bias != nullptr) {
        load_chunk(other, static_cast<const Element*>(params.bias) + column, count,
                   params.bias_vector);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] += other[i];
        }
    }
    if (params.activation != kNone) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] = activate(x[i], params.activation);
        }
    }
    if (params.residual != nullptr) {
        load_chunk(other,
                   source(params.residual, params.residual_batch_stride,
                          params.residual_row_stride),
                   count, params.residual_vector);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] += other[i];
        }
    }
    const int64_t to = batch * params.d_batch_stride + row * params.d_row_stride + column;
    switch (params.d_type) {
        case kF16:
            store_chunk(static_cast<__half*>(params.d) + to, x, count, params.d_vector);
            break;
        case kBf16:
            store_chunk(static_cast<__nv_bfloat16*>(params.d) + to, x, count, params.d_vector);
            break;
        default:
            store_chunk(static_cast<float*>(params.d) + to, x, count, params.d_vector);
    }
}

// Where a warp's results change hands: the lanes write them as mma.sync leaves them, two
// neighbours each, and read them as whole chunks of one row.
//
// Of the chunks, 32 bytes each, number c of row r lies at place c ^ (r % 4) of the row, so that the
// four rows of a write fall on different banks; the two halves of every other group of four chunks
// are swapped, so that eight lanes that read the same half of eight chunks do too.
template <int Columns>
struct Exchange {
    static constexpr int kRows = 16;
    static constexpr int kChunks = Columns / kChunk;
    static_assert(kChunks == 4 || kChunks == 8, "four chunks fill the banks once");

    alignas(16) float elements[kRows * Columns];

    // Half `half`, four elements, of a chunk.
    __device__ __forceinline__ float* at(int row, int chunk, int half) {
        const int place = row * kChunks + (chunk ^ (row % 4));
        return elements + kChunk * place + 4 * (half ^ (place / 4 % 2));
    }

    // Writes a row of results of mma.sync, 16 rows and 8 columns each.
    __device__ __forceinline__ void write(const float (&products)[kChunks][4]) {
        const int row = lane_of_warp() / 4, pair = lane_of_warp() % 4;
#pragma unroll
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            auto* to = reinterpret_cast<float2*>(at(row, chunk, pair / 2)) + pair % 2;
            const float(&product)[4] = products[chunk];
            // eight rows further down the places are the same
            to[4 * Columns] = make_float2(product[2], product[3]);
            to[0] = make_float2(product[0], product[1]);
        }
    }

    __device__ __forceinline__ void read(float (&x)[kChunk], int row, int chunk) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float4 four = *reinterpret_cast<const float4*>(at(row, chunk, half));
            x[4 * half] = four.x;
            x[4 * half + 1] = four.y;
            x[4 * half + 2] = four.z;
            x[4 * half + 3] = four.w;
        }
    }
};

}  // namespace seqmix::gemm
