// Copies of rows that are no whole chunks of 16 bytes, between tensors and tiles: 4 bytes at a time, or
// an element.
//
// These loops stand beside those that copy whole chunks, in kernels whose registers are full: they are
// unrolled no further than their latency asks for.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/async_copy.cuh"
#include "common/warp.cuh"

namespace seqmix::linear_attention {

// A row of a tile in pieces of `Bytes`.
template <typename Tile, int Bytes>
struct Pieces {
    using Element = typename Tile::Element;
    static constexpr int kElements = Bytes / sizeof(Element);
    static constexpr int kOfRow = Tile::kChunks * Tile::kChunkElements / kElements;
    static_assert(Bytes % sizeof(Element) == 0, "a piece is a number of elements");

    // Bytes from the tile's start to the piece that begins at `column`.
    __device__ __forceinline__ static int offset(int row, int column) {
        constexpr int kChunkElements = Tile::kChunkElements;
        return Tile::offset(row, column / kChunkElements) +
               static_cast<int>(sizeof(Element)) * (column % kChunkElements);
    }

    // Starts the copies of the rows of a tile from `first` up to `end`, of which `columns` exist, and
    // writes zeros to the rest; `from` is the first element of row 0 in a tensor. Those of elements of 16
    // bits are done when it returns.
    template <int Threads>
    __device__ __forceinline__ static void fetch(Tile& tile, const Element* from, int64_t stride,
                                                 int first, int end, int columns) {
        constexpr int kBatch = Bytes == 4 ? 1 : 4;  // loads through registers wait together
        static_assert(Tile::kRows * kOfRow % (Threads * kBatch) == 0,
                      "all threads copy equally much");
#pragma unroll 1
        for (int i = thread_of_block(); i < Tile::kRows * kOfRow; i += Threads * kBatch) {
            uint16_t elements[kBatch];
#pragma unroll
            for (int j = 0; j < kBatch; ++j) {
                const int row = (i + j * Threads) / kOfRow;
                const int column = (i + j * Threads) % kOfRow * kElements;
                const bool valid = row >= first && row < end && column < columns;
                const Element* at = from + row * stride + column;
                if constexpr (Bytes == 4) {
                    copy4_async(shared_address(tile.elements) + offset(row, column), at, valid);
                } else {
                    elements[j] =
                        valid ? *reinterpret_cast<const uint16_t*>(at) : static_cast<uint16_t>(0);
                }
            }
            if constexpr (Bytes != 4) {
                auto* bytes = reinterpret_cast<unsigned char*>(tile.elements);
#pragma unroll
                for (int j = 0; j < kBatch; ++j) {
                    const int row = (i + j * Threads) / kOfRow;
                    const int column = (i + j * Threads) % kOfRow;
                    *reinterpret_cast<uint16_t*>(bytes + offset(row, column)) = elements[j];
                }
            }
        }
    }
};

// Calls with(bytes) with the constant that `ragged` is: 4, or the bytes of an element.
template <typename Element, typename With>
__device__ __forceinline__ void by_width(int ragged, const With& with) {
    if (sizeof(Element) == 4 || ragged == 4) {
        with(std::integral_constant<int, 4>{});
    } else {
        with(std::integral_constant<int, sizeof(Element)>{});
    }
}

// Pieces::fetch, of pieces of `ragged` bytes.
template <int Threads, typename Tile>
__device__ __forceinline__ void fetch_ragged(Tile& tile, const typename Tile::Element* from,
                                             int64_t stride, int first, int end, int columns,
                                             int ragged) {
    by_width<typename Tile::Element>(ragged, [&](auto bytes) {
        Pieces<Tile, decltype(bytes)::value>::template fetch<Threads>(tile, from, stride, first, end, columns);
    });
}

}  // namespace seqmix::linear_attention
