// What becomes of a product, eight neighbours of a row at a time:
//
//     x = alpha row_scale column_scale (a b) + beta c + bias
//     kActivate          d = f(x) + residual
//     kGate              d = f(g) x + residual     where g is made of a and the gate's weights as x is
//     kActivateBackward  d = x f'(preactivation) + residual
//     kGateBackward      d = [x u f'(g), x f(g)]   where [g, u] is the preactivation
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "gemm/activation.cuh"
#include "gemm/chunk.cuh"
#include "gemm/params.h"
#include "gemm/place.cuh"

namespace seqmix::gemm {

// Which row of the result a chunk belongs to.
struct Row {
    int64_t batch;
    int64_t weights;  // which of the batch of b, bias and column scales; differs with groups only
    int64_t row;
};

// The first number that a type rounds to infinity.
__device__ __forceinline__ float overflow_of(int type) {
    switch (type) {
        case kF16:
            return 65520.f;
        case kBf16:
            return __uint_as_float(0x7f7f8000);
        default:
            return __uint_as_float(0x7f800000);
    }
}

__device__ __forceinline__ float largest_of(int type) {
    switch (type) {
        case kF16:
            return 65504.f;
        case kBf16:
            return __uint_as_float(0x7f7f0000);
        default:
            return __uint_as_float(0x7f7fffff);
    }
}

// Stores a chunk of d; returns how many of its elements are not finite in d's type.
__device__ __forceinline__ int store_result(const MultiplyParams& params, float (&x)[kChunk],
                                            int64_t at, int count) {
    int non_finite = 0;
    if (params.non_finite != nullptr) {
        const float overflow = overflow_of(params.d.dtype);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            non_finite += i < count && !(fabsf(x[i]) < overflow);
        }
    }
    if (params.saturate) {
        const float largest = largest_of(params.d.dtype);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            // a NaN stays
            x[i] = x[i] > largest ? largest : x[i];
            x[i] = x[i] < -largest ? -largest : x[i];
        }
    }
    store_any(params.d, at, x, count);
    return non_finite;
}

// Adds the scales and what is added before the activation.
template <typename Element>
__device__ __forceinline__ void complete(const MultiplyParams& params, float (&x)[kChunk],
                                         const Matrix& bias, const Row& row, int column,
                                         int count) {
    float other[kChunk];
    float scale = params.alpha;
    if (params.row_scale.at != nullptr) {
        scale *= *element<float>(params.row_scale,
                                 row.batch * params.row_scale.batch_stride + row.row);
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        x[i] *= scale;
    }
    if (params.column_scale.at != nullptr) {
        const Matrix& scales = params.column_scale;
        load_chunk(other, element<float>(scales, in_row(scales, row.weights, 0, column)), count,
                   scales.vector);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] *= other[i];
        }
    }
    if (params.c.at != nullptr) {
        load_any(other, params.c, in_row(params.c, row.batch, row.row, column), count);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] += params.beta * other[i];
        }
    }
    if (bias.at != nullptr) {
        load_chunk(other, element<Element>(bias, in_row(bias, row.weights, 0, column)), count,
                   bias.vector);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] += other[i];
        }
    }
}

// Turns the products of columns `column` to `column + count` of one row into results, which stay in
// x. `gate` holds those of the gate's weights. `count` may exceed eight. Returns how many results
// are not finite.
template <typename Element>
__device__ __forceinline__ int finish_chunk(const MultiplyParams& params, float (&x)[kChunk],
                                            float (&gate)[kChunk], const Row& row, int column,
                                            int count) {
    const Matrix& saved = params.preactivation;
    const int64_t at_saved = in_row(saved, row.batch, row.row, column);
    const int64_t at_d = in_row(params.d, row.batch, row.row, column);
    complete<Element>(params, x, params.bias, row, column, count);
    switch (params.epilogue) {
        case kGate:
            complete<Element>(params, gate, params.gate_bias, row, column, count);
            if (saved.at != nullptr) {
                store_chunk(element<Element>(saved, at_saved), gate, count, saved.vector);
                store_chunk(element<Element>(saved, at_saved + params.n), x, count, saved.vector);
            }
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                x[i] *= activate(gate[i], params.activation);
            }
            break;
        case kActivateBackward:
            load_chunk(gate, element<Element>(saved, at_saved), count, saved.vector);
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                x[i] *= derivative(gate[i], params.activation);
            }
            break;
        case kGateBackward: {
            float up[kChunk];
            load_chunk(gate, element<Element>(saved, at_saved), count, saved.vector);
            load_chunk(up, element<Element>(saved, at_saved + params.n), count, saved.vector);
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                up[i] *= x[i] * derivative(gate[i], params.activation);
                x[i] *= activate(gate[i], params.activation);
            }
            const int non_finite = store_result(params, up, at_d, count);
            return non_finite + store_result(params, x, at_d + params.n, count);
        }
        default:
            if (saved.at != nullptr) {
                store_chunk(element<Element>(saved, at_saved), x, count, saved.vector);
            }
            if (params.activation != kNone) {
#pragma unroll
                for (int i = 0; i < kChunk; ++i) {
                    x[i] = activate(x[i], params.activation);
                }
            }
    }
    if (params.residual.at != nullptr) {
        const Matrix& residual = params.residual;
        load_chunk(gate,
                   element<Element>(residual, in_row(residual, row.batch, row.row, column)), count,
                   residual.vector);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            x[i] += gate[i];
        }
    }
    return store_result(params, x, at_d, count);
}

// Adds what the lanes of a warp counted to the caller's counter: whole numbers, so that the order
// does not matter.
__device__ __forceinline__ void count_non_finite(const MultiplyParams& params, int non_finite) {
    if (params.non_finite != nullptr) {
        const int all = warp_sum(non_finite);
        if (lane_of_warp() == 0 && all > 0) {
            atomicAdd(params.non_finite, all);
        }
    }
}

// Adds what each row of warps has summed of a tile's columns, in order, for column_sums.cuh.
template <int Threads, int BlockM, int WarpsM, int Columns>
__device__ __forceinline__ void add_column_sums(const MultiplyParams& params,
                                                const float (&of_warps)[WarpsM][Columns],
                                                const Place& place) {
    __syncthreads();  // every warp's sums, before they are added up
    const int64_t tiles = (params.m - 1) / BlockM + 1;
    const int64_t tile = blockIdx.z * tiles + place.row / BlockM;
    for (int column = thread_of_block(); column < Columns; column += Threads) {
        float sum = 0.f;
        for (int warp = 0; warp < WarpsM; ++warp) {
            sum += of_warps[warp][column];
        }
        if (place.column + column < params.n) {
            params.column_sums[tile * params.n + place.column + column] = sum;
        }
    }
}

// The sums of one part of k, eight columns of a row, for sum_splits.cuh.
__device__ __forceinline__ void store_partial(const MultiplyParams& params,
                                              const float (&x)[kChunk], int split, int64_t batch,
                                              int64_t batches, int64_t row, int column) {
    const int64_t width = (params.n + kChunk - 1) / kChunk * kChunk;
    const int64_t at = ((split * batches + batch) * params.m + row) * width + column;
    store_chunk(params.partial + at, x, kChunk, true);
}

}  // namespace seqmix::gemm
