// Tensor-core multiplication of 16x16 by 16x8 elements (mma.sync) and the loads of its operands
// from tiles (ldmatrix).
//
// Results: lane l holds, of a 16x8 product, the elements (l/4, 2(l%4)), (l/4, 2(l%4)+1) and the
// same of the row 8 further down. Two results side by side, packed in pairs, are an operand A of
// the next multiplication.
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"

namespace seqmix {

// Four 8x8 matrices; lane l gives the address of row l%8 of matrix l/8.
// ldmatrix.sync.aligned.m8n8.x4.shared.b16
__device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
}

// The same, each matrix transposed. ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&matrices)[4],
                                                         uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
}

// Which row of a 16x16 part of a tile this lane gives the address of to ldmatrix.
template <typename Tile>
struct Operand {
    const Tile& tile;
    int offset;  // of the row in the part in the tile's upper left corner

    // The address in the part `row` rows, a multiple of 8, further down, in columns `16 * step` and
    // following. A part is two chunks wide; the swizzle permutes kPeriod parts.
    __device__ __forceinline__ uint32_t address(int row, int step) const {
        constexpr int kPeriod = Tile::kSpan / 2;
        return shared_address(tile.elements) + (offset ^ (32 * (step % kPeriod))) +
               16 * (row * Tile::kChunks + step / kPeriod * Tile::kSpan);
    }
};

// For a tile whose rows are those of operand A (load_matrices) or B (load_matrices_transposed):
// the four matrices are upper left, lower left, upper right, lower right, a register of the operand
// each. Parts count from `row` and `column`; the column is a multiple of 64, or of all that is read
// from there on if that is 16 or 32 wide.
template <typename Tile>
__device__ __forceinline__ Operand<Tile> operand_by_rows(const Tile& tile, int row,
                                                              int column = 0) {
    const int lane = lane_of_warp();
    return {tile, Tile::offset(row + lane % 16, column / 8 + lane / 16)};
}

// For a tile whose rows are the columns of operand B (load_matrices) or A
// (load_matrices_transposed): upper left, upper right, lower left, lower right.
template <typename Tile>
__device__ __forceinline__ Operand<Tile> operand_by_columns(const Tile& tile, int row,
                                                                 int column = 0) {
    const int lane = lane_of_warp();
    return {tile, Tile::offset(row + lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2)};
}

// c += a b, accumulated in f32. mma.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}.{f16,bf16}.f32
template <typename Element>
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1);

template <>
__device__ __forceinline__ void multiply<__half>(float (&c)[4], const uint32_t (&a)[4],
                                                 uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                        uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace seqmix
