// Tile: rows of 16-bit elements in shared memory, swizzled so that no access has bank conflicts.
//
// A row is a sequence of chunks of 16 bytes, the unit of cp.async, of ldmatrix and of 16-byte
// loads. Chunk c of row r lies at place c ^ s(r) of the row, where s takes a different value for
// the eight rows that one ldmatrix phase reads from the same column. A row of 64 bytes more than a
// multiple of 128 changes the half of the banks from row to row by itself; then s needs to cover
// the other half only. Rows of 32 bytes change the quarter.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/warp.cuh"

namespace seqmix {

template <typename Element_, int Rows, int Dim>
struct alignas(128) Tile {
    using Element = Element_;
    static constexpr int kRows = Rows;
    static constexpr int kChunkElements = 16 / sizeof(Element);
    static constexpr int kChunks = Dim / kChunkElements;
    // Neighbouring chunks that the swizzle permutes among themselves.
    static constexpr int kSpan = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;

    static_assert(sizeof(Element) == 2, "ldmatrix moves 16-bit elements");
    static_assert(kChunks % 4 == 0 || kChunks == 2, "a row is a multiple of 64 bytes, or 32 bytes");

    Element elements[Rows * Dim];

    // The permutation of row `row`: the same for rows that are eight apart.
    __device__ __forceinline__ static int swizzle(int row) {
        return kSpan == 8 ? row % 8 : kSpan == 4 ? row / 2 % 4 : row / 4 % 2;
    }

    // Bytes from the tile's start to a chunk.
    __device__ __forceinline__ static int offset(int row, int chunk) {
        return 16 * (row * kChunks + (chunk ^ swizzle(row)));
    }

    __device__ __forceinline__ uint32_t address(int row, int chunk) const {
        return shared_address(elements) + offset(row, chunk);
    }
};

// How a block of `Threads` threads copies a tile: neighbouring threads take neighbouring chunks, as
// many as the swizzle permutes; the block takes kStep rows at a time.
template <int Threads, typename Tile>
struct Copy {
    using Element = typename Tile::Element;
    static constexpr int kStep = Threads / Tile::kSpan;
    static constexpr int kGroupElements = Tile::kSpan * Tile::kChunkElements;
    static_assert(kStep % 8 == 0, "each thread keeps to one swizzle");
    static_assert(Tile::kRows % kStep == 0, "all threads copy equally much");

    // The first chunk of this thread.
    __device__ __forceinline__ static int row() { return thread_of_block() / Tile::kSpan; }
    __device__ __forceinline__ static int chunk() { return thread_of_block() % Tile::kSpan; }

    // Its address in a tensor whose rows are `stride` elements apart.
    __device__ __forceinline__ static const Element* source(const Element* tensor, int64_t stride) {
        return tensor + row() * stride + chunk() * Tile::kChunkElements;
    }

    // Starts the copies of `rows` rows of `chunks` chunks, and writes zeros to the rest of the
    // tile; `from` is this thread's `source` for the tile's first row.
    __device__ __forceinline__ static void start(const Tile& tile, const Element* from,
                                                 int64_t stride, int rows, int chunks) {
        const uint32_t to = tile.address(row(), chunk());
        const int rows_left = rows - row();
        const int chunks_left = chunks - chunk();
#pragma unroll
        for (int pass = 0; pass < Tile::kRows / kStep; ++pass) {
#pragma unroll
            for (int group = 0; group < Tile::kChunks / Tile::kSpan; ++group) {
                const bool valid = pass * kStep < rows_left && group * Tile::kSpan < chunks_left;
                copy16_async(to + 16 * (pass * kStep * Tile::kChunks + group * Tile::kSpan),
                             from + group * Tile::kSpan * Tile::kChunkElements, valid);
            }
            from += kStep * stride;
        }
    }

    // The same for a tensor that ends anywhere: `rows_left` rows and `columns_left` elements from
    // this thread's first chunk on; a chunk that a row ends in is filled up with zeros. The block's
    // next rows are `row_step` rows further in the tensor, and a thread's next chunk of a row
    // `group_step` elements.
    __device__ __forceinline__ static void start_ragged(const Tile& tile, const Element* from,
                                                        int64_t stride, int rows_left,
                                                        int columns_left, int row_step = kStep,
                                                        int group_step = kGroupElements) {
        const uint32_t to = tile.address(row(), chunk());
#pragma unroll
        for (int pass = 0; pass < Tile::kRows / kStep; ++pass) {
#pragma unroll
            for (int group = 0; group < Tile::kChunks / Tile::kSpan; ++group) {
                const int elements = min(columns_left - group * group_step, Tile::kChunkElements);
                const int bytes = max(elements, 0) * static_cast<int>(sizeof(Element));
                copy16_async(to + 16 * (pass * kStep * Tile::kChunks + group * Tile::kSpan),
                             from + group * group_step, pass * row_step < rows_left ? bytes : 0);
            }
            from += row_step * stride;
        }
    }

    // The same through registers, for tensors whose chunks are not aligned to 16 bytes, or whose
    // rows are not contiguous. Done when it returns. Not unrolled: it is slow in any case, and its
    // registers would be missed elsewhere.
    __device__ __forceinline__ static void by_elements(Tile& tile, const Element* from,
                                                       int64_t stride, int64_t column_stride,
                                                       int rows_left, int columns_left,
                                                       int row_step = kStep,
                                                       int group_step = kGroupElements) {
        auto* to =
            reinterpret_cast<unsigned char*>(tile.elements) + Tile::offset(row(), chunk());
#pragma unroll 1
        for (int pass = 0; pass < Tile::kRows / kStep; ++pass) {
#pragma unroll
            for (int group = 0; group < Tile::kChunks / Tile::kSpan; ++group) {
                const auto* bits = reinterpret_cast<const uint16_t*>(from);
                const auto load = [&](int i) -> uint32_t {
                    const int column = group * group_step + i;
                    const bool valid = pass * row_step < rows_left && column < columns_left;
                    return valid ? bits[column * column_stride] : 0;
                };
                const auto pair = [&](int i) { return load(i) | load(i + 1) << 16; };
                *reinterpret_cast<uint4*>(
                    to + 16 * (pass * kStep * Tile::kChunks + group * Tile::kSpan)) =
                    make_uint4(pair(0), pair(2), pair(4), pair(6));
            }
            from += row_step * stride;
        }
    }
};

}  // namespace seqmix
