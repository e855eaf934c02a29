// Several words in one access. Of a `float4` whose parts are used in different branches, or which other
// branches access by the element, the compiler may make several; these stay one.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"

namespace seqmix {

// 16 bytes of global memory, at a multiple of as many. ld.global.v4.b32
__device__ __forceinline__ uint4 load_global16(const void* from) {
    uint4 x;
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(__cvta_generic_to_global(from))
                 : "memory");
    return x;
}

// ld.global.v2.b32
__device__ __forceinline__ uint2 load_global8(const void* from) {
    uint2 x;
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];"
                 : "=r"(x.x), "=r"(x.y)
                 : "l"(__cvta_generic_to_global(from))
                 : "memory");
    return x;
}

// st.global.v4.b32
__device__ __forceinline__ void store_global16(void* to, const uint4& x) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}

// st.global.v2.b32
__device__ __forceinline__ void store_global8(void* to, const uint2& x) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(x.x),
                 "r"(x.y)
                 : "memory");
}

// Floats as they lie in memory, and back.
__device__ __forceinline__ uint4 bits_of(const float4& x) {
    return make_uint4(__float_as_uint(x.x), __float_as_uint(x.y), __float_as_uint(x.z),
                      __float_as_uint(x.w));
}

__device__ __forceinline__ float4 floats_of(const uint4& x) {
    return make_float4(__uint_as_float(x.x), __uint_as_float(x.y), __uint_as_float(x.z),
                       __uint_as_float(x.w));
}

// Four floats of shared memory, at a multiple of 16 bytes. ld.shared.v4.f32
__device__ __forceinline__ float4 load_shared4(const float* from) {
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(shared_address(from))
                 : "memory");
    return x;
}

// st.shared.v4.f32
__device__ __forceinline__ void store_shared4(float* to, const float4& x) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)), "f"(x.x),
                 "f"(x.y), "f"(x.z), "f"(x.w)
                 : "memory");
}

// st.shared.v2.f32
__device__ __forceinline__ void store_shared2(float* to, const float2& x) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared_address(to)), "f"(x.x), "f"(x.y)
                 : "memory");
}

}  // namespace seqmix
