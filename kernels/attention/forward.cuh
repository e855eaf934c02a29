// Attention forward for every GPU since Ampere: one block computes a tile of query rows of one head.
//
// grid    x: tiles of BlockQ query rows; y: query heads; z: sequences
// block   keeps its rows of q in shared memory and walks over the keys, BlockK at a time, from the
//         last to the first, so that the blocks that need a mask come first
// warp    owns BlockQ / Warps of the rows: their scores, maxima, sums and outputs
// lane    holds of each 16x8 product two neighbours in two rows (mma.cuh)
//
// While q k^T of a block runs, its v is on the way; while the softmax and p v run, the next k is.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "attention/params.h"
#include "common/async_copy.cuh"
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"

namespace seqmix::attention {

// The rows of one sequence.
struct Sequence {
    int start;
    int rows;
};

// Sequence `index` of `rows` rows, or of those that `starts` gives it. The values of `starts` come
// from the device's memory, so nobody has checked them: they are clamped to the tensor's rows.
__device__ __forceinline__ Sequence sequence_of(const int* starts, int rows, int index) {
    if (starts == nullptr) {
        return {0, rows};
    }
    const int start = min(max(starts[index], 0), rows);
    const int end = min(max(starts[index + 1], start), rows);
    return {start, end - start};
}

template <typename Element, int Dim, int BlockQ, int BlockK, int Warps>
struct Forward {
    static constexpr int kThreads = 32 * Warps;
    static constexpr int kWarpRows = BlockQ / Warps;
    static constexpr int kRowTiles = kWarpRows / 16;
    static constexpr int kKeyTiles = BlockK / 8;
    static constexpr int kDimTiles = Dim / 8;

    static_assert(kWarpRows == 16 * kRowTiles && kRowTiles > 0, "a warp owns tiles of 16 rows");
    static_assert(BlockK % 16 == 0 && Dim % 16 == 0, "mma multiplies 16 deep");

    // Registers of q, scores and outputs of a lane. Where all three leave room for the rest, q
    // stays in registers; otherwise it is read from shared memory for each block of keys.
    static constexpr int kRegisters = kRowTiles * (Dim / 4 + BlockK / 2 + Dim / 2);
    static constexpr bool kQueryInRegisters = kRegisters <= 192;

    // Scores may exceed the exponent's shift by this much, in powers of two, before the sums and
    // outputs are rescaled: p stays below 256, far from the limit of half precision, and most
    // blocks rescale nothing. The result does not depend on the shift but for rounding.
    static constexpr float kSlack = 8.f;

    using QueryTile = Tile<Element, BlockQ, Dim>;
    using KeyTile = Tile<Element, BlockK, Dim>;
    using QueryCopy = Copy<kThreads, QueryTile>;
    using KeyCopy = Copy<kThreads, KeyTile>;

    struct Smem {
        QueryTile q;  // later the outputs, before they are stored
        KeyTile k;
        KeyTile v;
    };

    // The query rows of this block: `start` in the tensor, and how many.
    struct QueryRows {
        int64_t start;
        int rows;
        int before_end;  // row 0 less the sequence's rows
    };
    __device__ __forceinline__ static QueryRows query_rows(const ForwardParams& params) {
        const Sequence all = sequence_of(params.cu_seqlens_q, params.rows_q, blockIdx.z);
        const int tiles = min((all.rows + BlockQ - 1) / BlockQ, static_cast<int>(gridDim.x));
        // the last tiles of a causal mask see the most keys: they start first
        const int tile = params.causal ? tiles - 1 - static_cast<int>(blockIdx.x) : blockIdx.x;
        const int first = BlockQ * tile;
        const int rows = tile < 0 ? 0 : min(all.rows - first, BlockQ);
        return {int64_t{all.start} + first, rows, first - all.rows};
    }

    // The first row of this warp, and of this lane in it; the first column of this lane.
    __device__ __forceinline__ static int warp_row() { return warp_of_block() * kWarpRows; }
    __device__ __forceinline__ static int lane_row() { return lane_of_warp() / 4; }
    __device__ __forceinline__ static int lane_column() { return 2 * (lane_of_warp() % 4); }

    __device__ __forceinline__ static void run(const ForwardParams& params, Smem& smem) {
        const QueryRows queries = query_rows(params);
        if (queries.rows <= 0) {
            return;
        }
        const Sequence keys = sequence_of(params.cu_seqlens_k, params.rows_k, blockIdx.z);
        const int chunks = params.head_dim / 8;
        const int64_t batch = blockIdx.z;
        const int64_t head = blockIdx.y;
        const int64_t head_kv = blockIdx.y / params.heads_per_kv;
        const Element* q = static_cast<const Element*>(params.q) + batch * params.q_batch_stride +
                           queries.start * params.q_row_stride + head * params.q_head_stride;
        const Element* k = static_cast<const Element*>(params.k) + batch * params.k_batch_stride +
                           keys.start * params.k_row_stride + head_kv * params.k_head_stride;
        const Element* v = static_cast<const Element*>(params.v) + batch * params.v_batch_stride +
                           keys.start * params.v_row_stride + head_kv * params.v_head_stride;

        // Row i of the tile sees the keys below visible(i); blocks from `full` on need the mask.
        const int diagonal =
            params.causal ? queries.before_end + keys.rows + 1 : keys.rows;
        const auto visible = [&](int row) { return min(diagonal + row, keys.rows); };
        const int blocks = (max(visible(queries.rows - 1), 0) + BlockK - 1) / BlockK;
        const int full = max(visible(0), 0) / BlockK;

        float out[kRowTiles][kDimTiles][4] = {};
        float shift[kRowTiles][2];     // exponents are those of the scores less this, in log2
        float sum[kRowTiles][2] = {};  // of the exponentials, over the keys of this lane
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
            shift[tile][0] = shift[tile][1] = -FLT_MAX;  // below every score, but -inf
        }

        // prefetch
        const Element* next_k = KeyCopy::source(
            k + int64_t{blocks - 1} * BlockK * params.k_row_stride, params.k_row_stride);
        const Element* next_v = KeyCopy::source(
            v + int64_t{blocks - 1} * BlockK * params.v_row_stride, params.v_row_stride);
        const auto fetch = [&](auto& tile, const Element*& next, int64_t stride, int block) {
            KeyCopy::start(tile, next, stride, keys.rows - block * BlockK, chunks);
            next -= BlockK * stride;
            commit_copies();
        };
        if (blocks > 0) {
            QueryCopy::start(smem.q, QueryCopy::source(q, params.q_row_stride),
                             params.q_row_stride, queries.rows, chunks);
            fetch(smem.k, next_k, params.k_row_stride, blocks - 1);
        }

        const auto q_operand = operand_by_rows(smem.q, warp_row());
        const auto k_operand = operand_by_columns(smem.k, 0);
        const auto v_operand = operand_by_rows(smem.v, 0);
        uint32_t q_registers[kRowTiles][kQueryInRegisters ? Dim / 16 : 1][4];

        for (int block = blocks - 1; block >= 0; --block) {
            wait_copies<0>();
            __syncthreads();  // k has landed for all, before q k^T; p v has read the last v
            fetch(smem.v, next_v, params.v_row_stride, block);

            if constexpr (kQueryInRegisters) {
                if (block == blocks - 1) {
#pragma unroll
                    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
                        for (int step = 0; step < Dim / 16; ++step) {
                            load_matrices(q_registers[tile][step], q_operand.address(16 * tile, step));
                        }
                    }
                }
            }

            // scores = q k^T
            float scores[kRowTiles][kKeyTiles][4] = {};
#pragma unroll
            for (int step = 0; step < Dim / 16; ++step) {
                uint32_t a[kRowTiles][4];
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
                    if constexpr (kQueryInRegisters) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            a[tile][i] = q_registers[tile][step][i];
                        }
                    } else {
                        load_matrices(a[tile], q_operand.address(16 * tile, step));
                    }
                }
#pragma unroll
                for (int pair = 0; pair < kKeyTiles / 2; ++pair) {
                    uint32_t b[4];
                    load_matrices(b, k_operand.address(16 * pair, step));
#pragma unroll
                    for (int tile = 0; tile < kRowTiles; ++tile) {
                        multiply<Element>(scores[tile][2 * pair], a[tile], b[0], b[1]);
                        multiply<Element>(scores[tile][2 * pair + 1], a[tile], b[2], b[3]);
                    }
                }
            }

            // mask: the score of a key that its row does not see is -inf
            if (block >= full) {
                const int first = warp_row() + lane_row();
                const int column = block * BlockK + lane_column();
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const int end = visible(first + 16 * tile + 8 * half) - column;
#pragma unroll
                        for (int key = 0; key < kKeyTiles; ++key) {
#pragma unroll
                            for (int i = 0; i < 2; ++i) {
                                if (8 * key + i >= end) {
                                    scores[tile][key][2 * half + i] = -INFINITY;
                                }
                            }
                        }
                    }
                }
            }

            wait_copies<0>();
            __syncthreads();  // v has landed for all, before p v; q k^T has read this k
            if (block > 0) {
                fetch(smem.k, next_k, params.k_row_stride, block - 1);
            }

            // softmax: where a row's largest score outgrows its shift, it becomes the shift
            float largest[kRowTiles][2];
            bool grows = false;
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float score = -INFINITY;
#pragma unroll
                    for (int key = 0; key < kKeyTiles; ++key) {
                        score = fmaxf(score, fmaxf(scores[tile][key][2 * half],
                                                   scores[tile][key][2 * half + 1]));
                    }
                    largest[tile][half] = quad_max(score) * params.scale_log2;
                    grows |= largest[tile][half] > shift[tile][half] + kSlack;
                }
            }
            if (__any_sync(kAllLanes, grows)) {
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float old = shift[tile][half];
                        shift[tile][half] =
                            largest[tile][half] > old + kSlack ? largest[tile][half] : old;
                        const float factor = exp2_approx(old - shift[tile][half]);
                        sum[tile][half] *= factor;
#pragma unroll
                        for (int column = 0; column < kDimTiles; ++column) {
                            out[tile][column][2 * half] *= factor;
                            out[tile][column][2 * half + 1] *= factor;
                        }
                    }
                }
            }
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
                for (int key = 0; key < kKeyTiles; ++key) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float& score = scores[tile][key][i];
                        score = exp2_approx(score * params.scale_log2 - shift[tile][i / 2]);
                        sum[tile][i / 2] += score;
                    }
                }
            }

            // out += p v
#pragma unroll
            for (int step = 0; step < BlockK / 16; ++step) {
                uint32_t a[kRowTiles][4];
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const float* p = &scores[tile][2 * step + i / 2][i % 2 * 2];
                        a[tile][i] = pack<Element>(p[0], p[1]);
                    }
                }
#pragma unroll
                for (int pair = 0; pair < kDimTiles / 2; ++pair) {
                    uint32_t b[4];
                    load_matrices_transposed(b, v_operand.address(16 * step, pair));
#pragma unroll
                    for (int tile = 0; tile < kRowTiles; ++tile) {
                        multiply<Element>(out[tile][2 * pair], a[tile], b[0], b[1]);
                        multiply<Element>(out[tile][2 * pair + 1], a[tile], b[2], b[3]);
                    }
                }
            }
        }

        // store: a row that saw no key has a sum of 0; it gives 0, and -inf as lse
        const QueryRows stored = query_rows(params);  // again: registers are short in the loop
        const int lane = lane_of_warp();
        const int first = warp_row() + lane / 4;
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = first + 16 * tile + 8 * half;
                const float total = quad_sum(sum[tile][half]);
                const float factor = total == 0.f ? 0.f : reciprocal_approx(total);
                if (params.lse != nullptr && lane % 4 == 0 && row < stored.rows) {
                    constexpr float kLn2 = 0.693147180559945f;
                    float* lse = params.lse + blockIdx.z * params.lse_batch_stride +
                                 blockIdx.y * params.lse_head_stride + stored.start;
                    lse[row] = total == 0.f ? -INFINITY
                                            : kLn2 * (shift[tile][half] + log2_approx(total));
                }
#pragma unroll
                for (int column = 0; column < kDimTiles; ++column) {
                    const uint32_t both = pack<Element>(out[tile][column][2 * half] * factor,
                                                        out[tile][column][2 * half + 1] * factor);
                    char* chunk = reinterpret_cast<char*>(smem.q.elements) +
                                  smem.q.offset(row, column);
                    *reinterpret_cast<uint32_t*>(chunk + 4 * (lane % 4)) = both;
                }
            }
        }
        __syncwarp();  // the warp's lanes have written its rows, before others of them read them
        Element* to = static_cast<Element*>(params.out) + blockIdx.z * params.out_batch_stride +
                      stored.start * params.out_row_stride + blockIdx.y * params.out_head_stride;
        using Rows = QueryTile;
        constexpr int kStep = 32 / Rows::kSpan;
#pragma unroll
        for (int pass = 0; pass < kWarpRows / kStep; ++pass) {
            const int row = warp_row() + pass * kStep + lane / Rows::kSpan;
#pragma unroll
            for (int group = 0; group < Rows::kChunks / Rows::kSpan; ++group) {
                const int chunk = lane % Rows::kSpan + group * Rows::kSpan;
                if (row < stored.rows && chunk < chunks) {
                    const char* from =
                        reinterpret_cast<const char*>(smem.q.elements) + smem.q.offset(row, chunk);
                    *reinterpret_cast<uint4*>(to + row * params.out_row_stride + 8 * chunk) =
                        *reinterpret_cast<const uint4*>(from);
                }
            }
        }
    }
};

}  // namespace seqmix::attention
