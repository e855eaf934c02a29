// The walk along k through a ring of stages in shared memory.
//
// While a step of 16 along k is multiplied, the operands of the next go from shared memory to
// registers, and the tiles of the next Stages - 1 blocks from global to shared memory.
#pragma once

#include "common/async_copy.cuh"

namespace seqmix::gemm {

// fetch(block, stage)             starts the copies of a block's tiles, if there is such a block
// load(fragments, stage, step)    loads the operands of a step
// multiply(fragments)             multiplies them
template <int Stages, int Steps, typename Fragments, typename Fetch, typename Load,
          typename Multiply>
__device__ __forceinline__ void walk(int blocks, const Fetch& fetch, const Load& load,
                                     const Multiply& multiply) {
    static_assert(Steps % 2 == 0, "the buffer of a step is known when compiling");
    static_assert(Stages >= 2, "a tile is on its way while another is read");
    const auto fetch_group = [&](int block, int stage) {
        if (block < blocks) {
            fetch(block, stage);
        }
        commit_copies();  // a group a block, even past the end, so that waits can count
    };
#pragma unroll
    for (int block = 0; block < Stages - 1; ++block) {
        fetch_group(block, block);
    }
    Fragments fragments[2];
    int reads = 0;            // the stage to read
    int writes = Stages - 1;  // the stage to fetch to
    if (blocks > 0) {
        wait_copies<Stages - 2>();
        __syncthreads();  // every thread's copies of the first block, before they are loaded
        load(fragments[0], 0, 0);
    }
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
#pragma unroll
        for (int step = 0; step < Steps; ++step) {
            if (step + 1 < Steps) {
                load(fragments[(step + 1) % 2], reads, step + 1);
            } else if (block + 1 < blocks) {
                reads = reads + 1 == Stages ? 0 : reads + 1;
                wait_copies<Stages - 2>();
                // every thread's copies of the next block, before they are loaded; and every load
                // from this block's stage, before the next fetch overwrites it
                __syncthreads();
                load(fragments[0], reads, 0);
            }
            if (step == 0) {
                fetch_group(block + Stages - 1, writes);
                writes = writes + 1 == Stages ? 0 : writes + 1;
            }
            multiply(fragments[step % 2]);
        }
    }
    wait_copies<0>();
    __syncthreads();  // all loads from the ring and copies to it, before it is used for something else
}

}  // namespace seqmix::gemm
