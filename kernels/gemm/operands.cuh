// Operands of a multiplication: their tiles in shared memory, how they are copied there, and how a
// warp loads its part.
#pragma once

#include <cstdint>

#include "common/mma.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "gemm/params.h"

namespace seqmix::gemm {

// The axis of an operand that lies contiguously: k, or the other one (m of a, n of b).
enum class Axis { K, Outer };

// How tiles are copied: 16 bytes at a time; or by single elements where an operand needs it, whose
// rows are contiguous, or whose columns may be apart as well.
enum class Access { Vector, Any, Strided };

// The tiles of one operand: Outer rows of a, or columns of b, by Depth along k.
//
// The tile of b may hold the columns of two matrices, eight of each in turn, so that the results of
// both come to the same lanes: the gate's and b's. It then holds half as many of each.
template <typename Element, Axis Contiguous, int Outer, int Depth, int Threads, Access Copies>
struct Side {
    static constexpr bool kAlongK = Contiguous == Axis::K;
    using Tile = seqmix::Tile<Element, kAlongK ? Outer : Depth, kAlongK ? Depth : Outer>;
    using Copy = seqmix::Copy<Threads, Tile>;
    static_assert(!kAlongK || Copy::kStep % 16 == 0, "a thread keeps to one of two matrices");

    __device__ __forceinline__ static int64_t column_stride(const Matrix& matrix) {
        return Copies == Access::Strided ? matrix.column_stride : 1;
    }

    // How the tile's columns belong to matrices.
    enum class Columns { OfOne, OfTwo };

    // Along the outer axis, where in its matrix this thread's first chunk lies, counted from the
    // tile's start.
    __device__ __forceinline__ static int outer(Columns columns) {
        const int place = kAlongK ? Copy::row() : 8 * Copy::chunk();
        return columns == Columns::OfTwo ? place / 16 * 8 + place % 8 : place;
    }

    // Whether this thread copies from the second of two matrices.
    __device__ __forceinline__ static bool second() {
        return (kAlongK ? Copy::row() / 8 : Copy::chunk()) % 2 != 0;
    }

    // What this thread copies first, for the tile that begins `first` along the outer axis.
    __device__ __forceinline__ static const Element* source(const Matrix& matrix, int64_t batch,
                                                            int64_t first, int64_t depth,
                                                            Columns columns = Columns::OfOne) {
        const auto* from = static_cast<const Element*>(matrix.at) + batch * matrix.batch_stride;
        const int64_t outer_at = first + outer(columns);
        return kAlongK ? from + outer_at * matrix.row_stride +
                             (depth + 8 * Copy::chunk()) * column_stride(matrix)
                       : from + (depth + Copy::row()) * matrix.row_stride +
                             outer_at * column_stride(matrix);
    }

    // Copies the next tile, of which the matrix has `outer_left` by `depth_left`; the rest becomes 0.
    __device__ __forceinline__ static void fetch(Tile& tile, const Element*& next,
                                                 const Matrix& matrix, int outer_left,
                                                 int depth_left,
                                                 Columns columns = Columns::OfOne) {
        const bool two = columns == Columns::OfTwo;
        const int rows = kAlongK ? outer_left - outer(columns) : depth_left - Copy::row();
        const int elements =
            kAlongK ? depth_left - 8 * Copy::chunk() : outer_left - outer(columns);
        const int row_step = kAlongK && two ? Copy::kStep / 2 : Copy::kStep;
        const int group_step =
            !kAlongK && two ? Copy::kGroupElements / 2 : Copy::kGroupElements;
        if (Copies == Access::Vector || matrix.vector) {
            Copy::start_ragged(tile, next, matrix.row_stride, rows, elements, row_step,
                               group_step);
        } else {
            Copy::by_elements(tile, next, matrix.row_stride, column_stride(matrix), rows, elements,
                              row_step, group_step);
        }
        next += Depth * (kAlongK ? column_stride(matrix) : matrix.row_stride);
    }
};

// The warp's part of a tile, for ldmatrix: rows of a, or columns of b, from `first` on.
template <Axis Contiguous, typename Tile>
__device__ __forceinline__ Operand<Tile> operand_a(const Tile& tile, int first) {
    if constexpr (Contiguous == Axis::K) {
        return operand_by_rows(tile, first);
    } else {
        return operand_by_columns(tile, 0, first);
    }
}

template <Axis Contiguous, typename Tile>
__device__ __forceinline__ Operand<Tile> operand_b(const Tile& tile, int first) {
    if constexpr (Contiguous == Axis::K) {
        return operand_by_columns(tile, first);
    } else {
        return operand_by_rows(tile, 0, first);
    }
}

// Loads what a step of 16 along k needs of an operand, in parts of 16 rows or columns, from the
// stage `offset` bytes after the operand's.
template <Axis Contiguous, int Parts, typename Tile>
__device__ __forceinline__ void load(uint32_t (&fragments)[Parts][4], const Operand<Tile>& operand,
                                     int offset, int step) {
#pragma unroll
    for (int part = 0; part < Parts; ++part) {
        if constexpr (Contiguous == Axis::K) {
            load_matrices(fragments[part], operand.address(16 * part, step) + offset);
        } else {
            load_matrices_transposed(fragments[part], operand.address(16 * step, part) + offset);
        }
    }
}

// products += a b, for one step along k.
template <typename Element, int Rows, int Pairs>
__device__ __forceinline__ void multiply_step(float (&products)[Rows][2 * Pairs][4],
                                              const uint32_t (&a)[Rows][4],
                                              const uint32_t (&b)[Pairs][4]) {
#pragma unroll
    for (int row = 0; row < Rows; ++row) {
#pragma unroll
        for (int pair = 0; pair < Pairs; ++pair) {
            multiply<Element>(products[row][2 * pair], a[row], b[pair][0], b[pair][1]);
            multiply<Element>(products[row][2 * pair + 1], a[row], b[pair][2], b[pair][3]);
        }
    }
}

}  // namespace seqmix::gemm
