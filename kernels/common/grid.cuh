// The block's place in the grid.
#pragma once

namespace seqmix {

// The block's number along z. Volatile, so that it is read again at each use, and with it what is
// computed of it: addresses are then not kept in registers between distant uses.
__device__ __forceinline__ int block_of_grid_z() {
    int block;
    asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(block));
    __builtin_assume(block >= 0 && block < 65536);
    return block;
}

}  // namespace seqmix
