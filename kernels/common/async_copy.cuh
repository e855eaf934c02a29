// Copies from global to shared memory that do not pass through registers (cp.async).
#pragma once

#include <cstdint>

namespace seqmix {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts a copy of 16 bytes to shared memory, around the L1 cache, of which only the first `bytes`
// are read and the rest are zeros. cp.async.cg.shared.global
__device__ __forceinline__ void copy16_async(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
}

// The same, of all 16 bytes or, where `valid` is false, of none.
__device__ __forceinline__ void copy16_async(uint32_t to, const void* from, bool valid) {
    copy16_async(to, from, valid ? 16 : 0);
}

// Starts a copy of 4 bytes to shared memory, or where `valid` is false writes zeros.
// cp.async.ca.shared.global
__device__ __forceinline__ void copy4_async(uint32_t to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? 4 : 0)
                 : "memory");
}

// Closes the group of copies that this thread has started since the last commit.
// cp.async.commit_group
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all but this thread's latest `Pending` groups have landed. Other threads see them
// after a barrier. cp.async.wait_group
template <int Pending>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

}  // namespace seqmix
