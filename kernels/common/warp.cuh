// A warp's lanes: who is who, reductions over four neighbours or all, and sums of those before.
//
// In the results of a tensor-core multiplication the four lanes of a quad hold one row.
#pragma once

#include <cstdint>

namespace seqmix {

constexpr uint32_t kAllLanes = 0xffffffff;

// The thread's number in a block of one dimension. Volatile, so that it is read again at each use
// and not kept in a register between distant ones.
__device__ __forceinline__ int thread_of_block() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    __builtin_assume(thread >= 0 && thread < 1024);
    return thread;
}

__device__ __forceinline__ int lane_of_warp() { return thread_of_block() % 32; }
__device__ __forceinline__ int warp_of_block() { return thread_of_block() / 32; }

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(kAllLanes, x, 1);
    return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Adds the values of lanes whose numbers differ by First, then First / 2 and so on down to Last. As
// long as there are several, a lane keeps half of its values and gives the other half away: of First
// down to Last lanes each ends with another part of the sums, the lower lane with the lower part.
template <int First, int Last, int Count>
__device__ __forceinline__ void sum_lanes(float (&values)[Count], int lane) {
    int count = Count;
#pragma unroll
    for (int distance = First; distance >= Last; distance /= 2) {
        if (count == 1) {
            values[0] += __shfl_xor_sync(kAllLanes, values[0], distance);
            continue;
        }
        const bool upper = lane & distance;
        count /= 2;
#pragma unroll
        for (int i = 0; i < Count / 2; ++i) {
            if (i < count) {
                const float given = upper ? values[i] : values[i + count];
                const float kept = upper ? values[i + count] : values[i];
                values[i] = kept + __shfl_xor_sync(kAllLanes, given, distance);
            }
        }
    }
}

// The sum of all lanes' numbers, in an order that does not depend on them.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(kAllLanes, x, distance);
    }
    return x;
}

// The largest of all lanes' numbers, none of which is negative.
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, distance));
    }
    return x;
}

__device__ __forceinline__ int warp_sum(int x) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(kAllLanes, x, distance);
    }
    return x;
}

// The sum of this lane's number and those of all lanes before it.
__device__ __forceinline__ int warp_prefix_sum(int x) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(kAllLanes, x, distance);
        x += lane_of_warp() >= distance ? before : 0;
    }
    return x;
}

}  // namespace seqmix
