// Chunks of 16 bytes, eight elements of 16 bits or four of 32: the unit in which tensors are moved.
//
// Which of the two is known when running: it changes no inner loop.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/numeric.cuh"
#include "selective_scan/params.h"

namespace seqmix::selective_scan {

constexpr int kChunkBytes = 16;
constexpr int kMaxElements = 8;  // of a chunk

__device__ __forceinline__ int bytes_of(int dtype) { return dtype == kF32 ? 4 : 2; }

// A chunk has 2^this elements.
__device__ __forceinline__ int element_bits(int dtype) { return dtype == kF32 ? 2 : 3; }

// Elements of a chunk, of so many bytes each.
__device__ __forceinline__ int elements_of(int bytes) { return bytes == 4 ? 4 : 8; }

// Reads 16 bytes.
__device__ __forceinline__ void load_four(float (&x)[4], const float* from) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}

// Copies `count` elements, none if it is negative, to a slot in shared memory and fills it up with
// zeros. Done at the next wait for copies of this thread.
__device__ __forceinline__ void start_chunk(uint4& slot, const void* from, int count,
                                            int64_t stride, bool vector, int bytes) {
    if (vector) {
        copy16_async(shared_address(&slot), from, min(max(count, 0), elements_of(bytes)) * bytes);
        return;
    }
    uint32_t words[4] = {};
    if (bytes == 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[i] = i < count ? static_cast<const uint32_t*>(from)[i * stride] : 0;
        }
    } else {
        const auto load = [&](int i) -> uint32_t {
            return i < count ? static_cast<const uint16_t*>(from)[i * stride] : 0;
        };
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            words[i] = load(2 * i) | load(2 * i + 1) << 16;
        }
    }
    slot = make_uint4(words[0], words[1], words[2], words[3]);
}

// The chunk with its elements in the opposite order.
__device__ __forceinline__ uint4 reversed(uint4 chunk, int bytes) {
    const auto swap = [&](uint32_t word) {
        return bytes == 4 ? word : word >> 16 | word << 16;
    };
    return make_uint4(swap(chunk.w), swap(chunk.z), swap(chunk.y), swap(chunk.x));
}

template <typename Element>
__device__ __forceinline__ void widen_halves(float (&x)[kMaxElements], uint4 chunk) {
    unpack<Element>(x[0], x[1], chunk.x);
    unpack<Element>(x[2], x[3], chunk.y);
    unpack<Element>(x[4], x[5], chunk.z);
    unpack<Element>(x[6], x[7], chunk.w);
}

// The elements as floats; those that the chunk does not have become 0.
__device__ __forceinline__ void widen(float (&x)[kMaxElements], uint4 chunk, int dtype) {
    if (dtype == kF16) {
        widen_halves<__half>(x, chunk);
    } else if (dtype == kBf16) {
        widen_halves<__nv_bfloat16>(x, chunk);
    } else {
        x[0] = __uint_as_float(chunk.x);
        x[1] = __uint_as_float(chunk.y);
        x[2] = __uint_as_float(chunk.z);
        x[3] = __uint_as_float(chunk.w);
        x[4] = x[5] = x[6] = x[7] = 0.f;
    }
}

// The chunk of these numbers, rounded.
__device__ __forceinline__ uint4 narrow(const float (&x)[kMaxElements], int dtype) {
    if (dtype == kF16) {
        return make_uint4(pack<__half>(x[0], x[1]), pack<__half>(x[2], x[3]),
                          pack<__half>(x[4], x[5]), pack<__half>(x[6], x[7]));
    }
    if (dtype == kBf16) {
        return make_uint4(pack<__nv_bfloat16>(x[0], x[1]), pack<__nv_bfloat16>(x[2], x[3]),
                          pack<__nv_bfloat16>(x[4], x[5]), pack<__nv_bfloat16>(x[6], x[7]));
    }
    return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                      __float_as_uint(x[3]));
}

// Writes the elements `first` to `end` of a chunk, whose element 0 belongs at `to`.
__device__ __forceinline__ void store_chunk(void* to, uint4 chunk, int first, int end,
                                            int64_t stride, bool vector, int bytes) {
    if (vector && first == 0 && end == elements_of(bytes)) {
        *static_cast<uint4*>(to) = chunk;
        return;
    }
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
    if (bytes == 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i >= first && i < end) {
                static_cast<uint32_t*>(to)[i * stride] = words[i];
            }
        }
    } else {
#pragma unroll
        for (int i = 0; i < kMaxElements; ++i) {
            if (i >= first && i < end) {
                static_cast<uint16_t*>(to)[i * stride] =
                    static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)));
            }
        }
    }
}

// An element of a vector of any type.
__device__ __forceinline__ float load_element(const void* from, int64_t at, int dtype) {
    if (dtype == kF16) {
        return __half2float(static_cast<const __half*>(from)[at]);
    }
    if (dtype == kBf16) {
        return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[at]);
    }
    return static_cast<const float*>(from)[at];
}

// Rounds a number to an element of any type.
__device__ __forceinline__ void store_element(void* to, int64_t at, float x, int dtype) {
    if (dtype == kF16) {
        static_cast<__half*>(to)[at] = __float2half_rn(x);
    } else if (dtype == kBf16) {
        static_cast<__nv_bfloat16*>(to)[at] = __float2bfloat16_rn(x);
    } else {
        static_cast<float*>(to)[at] = x;
    }
}

}  // namespace seqmix::selective_scan
