// Matrix multiplication for every GPU since Ampere: a block computes a tile of d.
//
// grid    x: tiles, eight rows of them at a time, so that blocks which run together share operands
//         in L2; z: matrices of the batch
// block   walks along k, BlockK at a time, through a ring of Stages tiles of a and of b
// warp    owns WarpM x WarpN elements of the tile
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
//
// While a step of 16 along k is multiplied, the operands of the next go from shared memory to
// registers, and the tiles of the next Stages - 1 blocks from global to shared memory.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/params.h"

namespace seqmix::gemm {

// The axis of an operand that lies contiguously: k, or the other one (m of a, n of b).
enum class Axis { K, Outer };

// How tiles are copied: 16 bytes at a time, or by single elements where an operand needs it.
enum class Access { Vector, Any };

// The tiles of one operand: Outer rows of a, or columns of b, by Depth along k.
template <typename Element, Axis Contiguous, int Outer, int Depth, int Threads, Access Copies>
struct Side {
    static constexpr bool kAlongK = Contiguous == Axis::K;
    using Tile = seqmix::Tile<Element, kAlongK ? Outer : Depth, kAlongK ? Depth : Outer>;
    using Copy = seqmix::Copy<Threads, Tile>;

    // What this thread copies first, for the tile that begins `first` along the outer axis.
    __device__ __forceinline__ static const Element* source(const Element* matrix, int64_t stride,
                                                            int64_t first) {
        return Copy::source(matrix + (kAlongK ? first * stride : first), stride);
    }

    // Copies the next tile, of which the tensor has `outer` by `depth`; the rest becomes 0.
    __device__ __forceinline__ static void fetch(Tile& tile, const Element*& next,
                                                 int64_t stride, int outer, int depth,
                                                 bool vector) {
        const int rows = kAlongK ? outer : depth;
        const int columns = kAlongK ? depth : outer;
        if (Copies == Access::Vector || vector) {
            Copy::start_ragged(tile, next, stride, rows, columns);
        } else {
            Copy::by_elements(tile, next, stride, rows, columns);
        }
        next += kAlongK ? int64_t{Depth} : Depth * stride;
    }
};

template <typename Element, Axis AxisA, Axis AxisB, int BlockM, int BlockN, int BlockK, int WarpM,
          int WarpN, int Stages, Access Copies>
struct Multiply {
    static constexpr int kWarpsN = BlockN / WarpN;
    static constexpr int kWarps = BlockM / WarpM * kWarpsN;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kRowTiles = WarpM / 16;
    static constexpr int kColumnPairs = WarpN / 16;  // of tiles of 8 columns
    static constexpr int kSteps = BlockK / 16;
    static constexpr int kGroup = 8;

    static_assert(BlockM % WarpM == 0 && BlockN % WarpN == 0, "warps divide the tile");
    static_assert(WarpM == 16 || WarpM == 32 || WarpM == 64, "the swizzle permutes 64 columns");
    static_assert(WarpN == 32 || WarpN == 64, "an Exchange has 4 or 8 chunks");
    static_assert(kSteps % 2 == 0, "the buffer of a step is known when compiling");
    static_assert(Stages >= 3, "a tile is on its way while another is read");

    using SideA = Side<Element, AxisA, BlockM, BlockK, kThreads, Copies>;
    using SideB = Side<Element, AxisB, BlockN, BlockK, kThreads, Copies>;

    struct Stage {
        typename SideA::Tile a;
        typename SideB::Tile b;
    };
    struct Smem {
        union {
            Stage stages[Stages];
            Exchange<WarpN> exchange[kWarps];  // at the end the results
        };
    };
    static_assert(sizeof(Smem) == Stages * sizeof(Stage), "results fit in the ring");

    using Products = float[kRowTiles][2 * kColumnPairs][4];

    // The operands of one step along k.
    struct Fragments {
        uint32_t a[kRowTiles][4];
        uint32_t b[kColumnPairs][4];
    };

    // The first row and column of this block's tile.
    struct Place {
        int row;
        int column;
    };

    __device__ __forceinline__ static Place place(const MultiplyParams& params) {
        const int tiles_m = (params.m - 1) / BlockM + 1;
        const int tiles_n = (params.n - 1) / BlockN + 1;
        const int group = static_cast<int>(blockIdx.x) / (kGroup * tiles_n);
        const int in_group = static_cast<int>(blockIdx.x) - group * kGroup * tiles_n;
        const int rows = min(tiles_m - group * kGroup, kGroup);
        return {(group * kGroup + in_group % rows) * BlockM, in_group / rows * BlockN};
    }

    __device__ __forceinline__ static int warp_row() { return warp_of_block() / kWarpsN * WarpM; }
    __device__ __forceinline__ static int warp_column() {
        return warp_of_block() % kWarpsN * WarpN;
    }

    // The warp's part of a tile, for ldmatrix.
    __device__ __forceinline__ static auto operand_a(const typename SideA::Tile& tile) {
        if constexpr (AxisA == Axis::K) {
            return operand_by_rows(tile, warp_row());
        } else {
            return operand_by_columns(tile, 0, warp_row());
        }
    }
    __device__ __forceinline__ static auto operand_b(const typename SideB::Tile& tile) {
        if constexpr (AxisB == Axis::K) {
            return operand_by_columns(tile, warp_column());
        } else {
            return operand_by_rows(tile, 0, warp_column());
        }
    }

    // Loads a step's operands from the stage `offset` bytes after the first.
    template <typename OperandA, typename OperandB>
    __device__ __forceinline__ static void load(Fragments& fragments, const OperandA& a,
                                                const OperandB& b, int offset, int step) {
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
            if constexpr (AxisA == Axis::K) {
                load_matrices(fragments.a[tile], a.address(16 * tile, step) + offset);
            } else {
                load_matrices_transposed(fragments.a[tile], a.address(16 * step, tile) + offset);
            }
        }
#pragma unroll
        for (int pair = 0; pair < kColumnPairs; ++pair) {
            if constexpr (AxisB == Axis::K) {
                load_matrices(fragments.b[pair], b.address(16 * pair, step) + offset);
            } else {
                load_matrices_transposed(fragments.b[pair], b.address(16 * step, pair) + offset);
            }
        }
    }

    __device__ __forceinline__ static void multiply_step(Products& products,
                                                         const Fragments& fragments) {
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
            for (int pair = 0; pair < kColumnPairs; ++pair) {
                const uint32_t(&b)[4] = fragments.b[pair];
                multiply<Element>(products[tile][2 * pair], fragments.a[tile], b[0], b[1]);
                multiply<Element>(products[tile][2 * pair + 1], fragments.a[tile], b[2], b[3]);
            }
        }
    }

    __device__ __forceinline__ static void run(const MultiplyParams& params, Smem& smem) {
        const Place tile = place(params);
        const int64_t batch = blockIdx.z;
        const Element* next_a = SideA::source(
            static_cast<const Element*>(params.a) + batch * params.a_batch_stride, params.a_stride,
            tile.row);
        const Element* next_b = SideB::source(
            static_cast<const Element*>(params.b) + batch * params.b_batch_stride, params.b_stride,
            tile.column);
        const int blocks = (params.k + BlockK - 1) / BlockK;
        const auto fetch = [&](int block, int stage) {
            if (block < blocks) {
                const int depth = params.k - block * BlockK;
                SideA::fetch(smem.stages[stage].a, next_a, params.a_stride, params.m - tile.row,
                             depth, params.a_vector);
                SideB::fetch(smem.stages[stage].b, next_b, params.b_stride, params.n - tile.column,
                             depth, params.b_vector);
            }
            commit_copies();  // a group a block, even past the end, so that waits can count
        };

#pragma unroll
        for (int block = 0; block < Stages - 1; ++block) {
            fetch(block, block);
        }
        const auto a = operand_a(smem.stages[0].a);
        const auto b = operand_b(smem.stages[0].b);
        Products products = {};
        Fragments fragments[2];
        int reads = 0;            // the stage to read
        int writes = Stages - 1;  // the stage to fetch to
        if (blocks > 0) {
            wait_copies<Stages - 2>();
            __syncthreads();  // every thread's copies of the first block, before they are loaded
            load(fragments[0], a, b, 0, 0);
        }
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (step + 1 < kSteps) {
                    load(fragments[(step + 1) % 2], a, b, reads * int{sizeof(Stage)}, step + 1);
                } else if (block + 1 < blocks) {
                    reads = reads + 1 == Stages ? 0 : reads + 1;
                    wait_copies<Stages - 2>();
                    // every thread's copies of the next block, before they are loaded; and every
                    // load from this block's stage, before the next fetch overwrites it
                    __syncthreads();
                    load(fragments[0], a, b, reads * int{sizeof(Stage)}, 0);
                }
                if (step == 0) {
                    fetch(block + Stages - 1, writes);
                    writes = writes + 1 == Stages ? 0 : writes + 1;
                }
                multiply_step(products, fragments[step % 2]);
            }
        }
        store(params, smem, products);
    }

    // Finishes the products, 16 rows of each warp at a time. The code of the epilogue exists once:
    // the loops around it are not unrolled.
    __device__ __forceinline__ static void store(const MultiplyParams& params, Smem& smem,
                                                 const Products& products) {
        wait_copies<0>();
        __syncthreads();  // all loads from the ring and copies to it, before results overwrite it
        const Place tile = place(params);
        Exchange<WarpN>& exchange = smem.exchange[warp_of_block()];
        const int lane = lane_of_warp();
#pragma unroll 1
        for (int part = 0; part < kRowTiles; ++part) {
#pragma unroll
            for (int row_tile = 0; row_tile < kRowTiles; ++row_tile) {
                if (row_tile == part) {
                    exchange.write(products[row_tile]);
                }
            }
            __syncwarp();  // the lanes have written, before others read
            constexpr int kChunks = Exchange<WarpN>::kChunks;
#pragma unroll 1
            for (int at = lane; at < 16 * kChunks; at += 32) {
                const int row = tile.row + warp_row() + 16 * part + at / kChunks;
                const int column = tile.column + warp_column() + kChunk * (at % kChunks);
                if (row < params.m && column < params.n) {
                    float x[kChunk];
                    exchange.read(x, at / kChunks, at % kChunks);
                    finish_chunk<Element>(params, x, blockIdx.z, row, column, params.n - column);
                }
            }
            __syncwarp();  // the lanes have read, before others overwrite
        }
    }
};

}  // namespace seqmix::gemm
