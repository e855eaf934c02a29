// Eight neighbours of a row, the unit in which results are finished: loads and stores of them.
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "gemm/params.h"

namespace seqmix::gemm {

constexpr int kChunk = 8;

// Eight elements of 16 bits at `from`, those from `count` on as 0. 16 bytes at once if `vector`.
__device__ __forceinline__ uint4 load_bits(const void* from, int count, bool vector) {
    if (vector && count >= kChunk) {
        return *static_cast<const uint4*>(from);
    }
    const auto load = [&](int i) -> uint32_t {
        return i < count ? static_cast<const uint16_t*>(from)[i] : 0;
    };
    const auto pair = [&](int i) { return load(i) | load(i + 1) << 16; };
    return make_uint4(pair(0), pair(2), pair(4), pair(6));
}

// Writes the first `count` of eight elements of 16 bits.
__device__ __forceinline__ void store_bits(void* to, uint4 bits, int count, bool vector) {
    if (vector && count >= kChunk) {
        *static_cast<uint4*>(to) = bits;
        return;
    }
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        if (i < count) {
            static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
        }
    }
}

template <typename Element>
__device__ __forceinline__ void widen(float (&x)[kChunk], uint4 bits) {
    unpack<Element>(x[0], x[1], bits.x);
    unpack<Element>(x[2], x[3], bits.y);
    unpack<Element>(x[4], x[5], bits.z);
    unpack<Element>(x[6], x[7], bits.w);
}

template <typename Element>
__device__ __forceinline__ uint4 narrow(const float (&x)[kChunk]) {
    return make_uint4(pack<Element>(x[0], x[1]), pack<Element>(x[2], x[3]),
                      pack<Element>(x[4], x[5]), pack<Element>(x[6], x[7]));
}

// The eight elements at `from`, those from `count` on as 0.
template <typename Element>
__device__ __forceinline__ void load_chunk(float (&x)[kChunk], const Element* from, int count,
                                           bool vector) {
    widen<Element>(x, load_bits(from, count, vector));
}

template <>
__device__ __forceinline__ void load_chunk<float>(float (&x)[kChunk], const float* from, int count,
                                                  bool vector) {
    if (vector && count >= kChunk) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float4 four = reinterpret_cast<const float4*>(from)[half];
            x[4 * half] = four.x;
            x[4 * half + 1] = four.y;
            x[4 * half + 2] = four.z;
            x[4 * half + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] = i < count ? from[i] : 0.f;
        }
    }
}

// Rounds the first `count` of eight numbers to elements.
template <typename Element>
__device__ __forceinline__ void store_chunk(Element* to, const float (&x)[kChunk], int count,
                                            bool vector) {
    store_bits(to, narrow<Element>(x), count, vector);
}

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

// Where element `at` of a matrix lies, counted from its first.
template <typename Element>
__device__ __forceinline__ Element* element(const Matrix& matrix, int64_t at) {
    return static_cast<Element*>(matrix.at) + at;
}

// The same in a row of one of its batch.
__device__ __forceinline__ int64_t in_row(const Matrix& matrix, int64_t batch, int64_t row,
                                          int column) {
    return batch * matrix.batch_stride + row * matrix.row_stride + column;
}

// A chunk of a matrix whose type is known when running.
__device__ __forceinline__ void load_any(float (&x)[kChunk], const Matrix& matrix, int64_t at,
                                         int count) {
    if (matrix.dtype == kF32) {
        load_chunk(x, element<float>(matrix, at), count, matrix.vector);
        return;
    }
    const uint4 bits = load_bits(element<uint16_t>(matrix, at), count, matrix.vector);
    if (matrix.dtype == kF16) {
        widen<__half>(x, bits);
    } else {
        widen<__nv_bfloat16>(x, bits);
    }
}

__device__ __forceinline__ void store_any(const Matrix& matrix, int64_t at,
                                          const float (&x)[kChunk], int count) {
    if (matrix.dtype == kF32) {
        store_chunk(element<float>(matrix, at), x, count, matrix.vector);
        return;
    }
    const uint4 bits = matrix.dtype == kF16 ? narrow<__half>(x) : narrow<__nv_bfloat16>(x);
    store_bits(element<uint16_t>(matrix, at), bits, count, matrix.vector);
}

}  // namespace seqmix::gemm
