// Operands of a multiplication without tensor cores: their tiles in shared memory, and how they are
// copied there.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/warp.cuh"
#include "gemm/operands.cuh"
#include "gemm/params.h"

namespace seqmix::gemm {

// The tile of one operand: Outer rows of a, or columns of b, by Depth along k. However the operand
// lies in memory, here the outer axis lies contiguously, so that a thread loads neighbours of it at
// once.
//
// Where 16 neighbouring bytes of the tile are 16 aligned bytes of the operand, they are copied at
// once, otherwise each element on its own. Of an operand along k a warp then copies 8 elements along
// k, a whole sector, of 4 rows or columns. Lines of the tile are 4 elements longer than they need be,
// which is why these 32 meet each bank once.
//
// The second half of the tile may belong to another matrix than the first: to b, where the first
// belongs to the gate's weights. A thread copies to one half only.
template <Axis Contiguous, int Outer, int Depth, int Threads>
struct Panel {
    static constexpr bool kAlongK = Contiguous == Axis::K;
    static constexpr int kLine = Outer + 4;
    static constexpr int kHalf = Outer / 2;
    static constexpr int kSpread = Threads / 16;  // rows or columns of a half that are copied at once
    static constexpr int kVectors = Outer / 4;    // of 16 bytes, in a line

    static_assert(kHalf % 32 == 0, "the halves begin at the same bank");
    static_assert(kSpread % 4 == 0 && kHalf % kSpread == 0, "a warp copies to one half");
    static_assert(Depth % 8 == 0, "whole sectors along k");
    static_assert(Threads % Outer == 0 && Depth % (Threads / kVectors) == 0, "whole lines at once");

    alignas(16) float elements[Depth * kLine];

    // Which matrices the halves belong to.
    enum class Halves { OfOne, OfTwo };

    // A place in the tile.
    struct At {
        int outer;
        int depth;
    };

    // What this thread copies first.
    __device__ __forceinline__ static At first(const Matrix& matrix) {
        const int thread = thread_of_block();
        if (kAlongK) {
            const int outer = thread / 8;
            return {outer / kSpread * kHalf + outer % kSpread, thread % 8};
        }
        return matrix.vector ? At{thread % kVectors * 4, thread / kVectors}
                             : At{thread % Outer, thread / Outer};
    }

    __device__ __forceinline__ static bool in_second_half(const Matrix& matrix) {
        return first(matrix).outer >= kHalf;
    }

    // Along the outer axis, where in its matrix `at` lies, counted from the tile's start.
    __device__ __forceinline__ static int outer_in_matrix(const At& at, Halves halves) {
        return halves == Halves::OfTwo ? at.outer % kHalf : at.outer;
    }

    // What this thread copies first, for the tile that begins at `outer` and `depth`.
    __device__ __forceinline__ static const float* source(const Matrix& matrix, int64_t batch,
                                                          int64_t outer, int64_t depth,
                                                          Halves halves = Halves::OfOne) {
        const At at = first(matrix);
        const auto* from = static_cast<const float*>(matrix.at) + batch * matrix.batch_stride;
        outer += outer_in_matrix(at, halves);
        depth += at.depth;
        return kAlongK ? from + outer * matrix.row_stride + depth
                       : from + depth * matrix.row_stride + outer;
    }

    // Starts the copies of the next tile, of which the matrix has `outer_left` by `depth_left`; the
    // rest becomes 0.
    __device__ __forceinline__ void fetch(const float*& next, const Matrix& matrix, int outer_left,
                                          int depth_left, Halves halves = Halves::OfOne) {
        const At at = first(matrix);
        const uint32_t to = shared_address(elements + at.depth * kLine + at.outer);
        outer_left -= outer_in_matrix(at, halves);
        depth_left -= at.depth;
        const float* from = next;
        if (kAlongK) {
#pragma unroll
            for (int outer = 0; outer < kHalf; outer += kSpread) {
#pragma unroll
                for (int depth = 0; depth < Depth; depth += 8) {
                    copy4_async(to + 4 * (depth * kLine + outer), from + depth,
                                outer < outer_left && depth < depth_left);
                }
                from += kSpread * matrix.row_stride;
            }
            next += Depth;
            return;
        }
        if (matrix.vector) {
            constexpr int kStep = Threads / kVectors;
            const int bytes = 4 * min(max(outer_left, 0), 4);
#pragma unroll
            for (int depth = 0; depth < Depth; depth += kStep) {
                copy16_async(to + 4 * depth * kLine, from, depth < depth_left ? bytes : 0);
                from += kStep * matrix.row_stride;
            }
        } else {
            constexpr int kStep = Threads / Outer;
#pragma unroll
            for (int depth = 0; depth < Depth; depth += kStep) {
                copy4_async(to + 4 * depth * kLine, from, 0 < outer_left && depth < depth_left);
                from += kStep * matrix.row_stride;
            }
        }
        next += Depth * matrix.row_stride;
    }
};

}  // namespace seqmix::gemm
