// Attention forward for every GPU since Ampere: a block computes a tile of query rows of one head.
//
// grid    x: tiles of BlockQ query rows; y: query heads; z: sequences
// block   holds its rows of q in shared memory and walks over the keys, BlockK at a time, from the
//         last to the first, so that the blocks which need a mask come first
// warp    owns BlockQ / Warps of the rows: their scores, maxima, sums and outputs
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
//
// While q k^T of a block runs, its v is on the way; while its softmax and p v run, the next k is.
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
// from the device's memory, where nobody has checked them: they are clamped to the tensor's rows.
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
    static constexpr int kDimSteps = Dim / 16;
    static constexpr int kKeySteps = BlockK / 16;

    static_assert(kWarpRows == 16 * kRowTiles && kRowTiles > 0, "a warp owns tiles of 16 rows");
    static_assert(BlockK % 16 == 0 && Dim % 16 == 0, "mma multiplies 16 deep");

    // Registers of q, scores and outputs of a lane. Where they leave room for the rest, q stays in
    // registers; otherwise it is read from shared memory for each block of keys.
    static constexpr int kRegisters = kRowTiles * (Dim / 4 + BlockK / 2 + Dim / 2);
    static constexpr bool kQueryInRegisters = kRegisters <= 192;

    // How far scores may exceed the shift of their exponents, in powers of two, before sums and
    // outputs are rescaled. p stays below 256, far from the limit of half precision, and most
    // blocks rescale nothing. The result does not depend on the shift but for rounding.
    static constexpr float kSlack = 8.f;

    using QueryTile = Tile<Element, BlockQ, Dim>;
    using KeyTile = Tile<Element, BlockK, Dim>;
    using QueryCopy = Copy<kThreads, QueryTile>;
    using KeyCopy = Copy<kThreads, KeyTile>;

    struct Smem {
        QueryTile q;  // at the end the outputs, on their way to global memory
        KeyTile k;
        KeyTile v;
    };

    using Query = uint32_t[kRowTiles][kDimSteps][4];
    using Scores = float[kRowTiles][kKeyTiles][4];
    using Output = float[kRowTiles][kDimTiles][4];

    // A value for each of the lane's rows: those of half 1 are 8 rows below those of half 0.
    using Rows = float[kRowTiles][2];

    // The query rows of this block.
    struct Place {
        int64_t start;   // in the tensor
        int rows;        // of the tile, in the sequence; none or fewer if there is nothing to do
        int before_end;  // its first row, counted back from the sequence's end: negative
    };

    __device__ __forceinline__ static Place place(const ForwardParams& params) {
        const Sequence all = sequence_of(params.cu_seqlens_q, params.rows_q, blockIdx.z);
        const int tiles = min((all.rows + BlockQ - 1) / BlockQ, static_cast<int>(gridDim.x));
        const int order = static_cast<int>(blockIdx.x);
        if (order >= tiles) {
            return {0, 0, 0};
        }
        // the last tiles of a causal mask see the most keys: they start first
        const int first = BlockQ * (params.causal ? tiles - 1 - order : order);
        return {int64_t{all.start} + first, min(all.rows - first, BlockQ), first - all.rows};
    }

    // The first row of this warp, and of this lane in it; the first column of this lane.
    __device__ __forceinline__ static int warp_row() { return warp_of_block() * kWarpRows; }
    __device__ __forceinline__ static int lane_row() { return lane_of_warp() / 4; }
    __device__ __forceinline__ static int lane_column() { return 2 * (lane_of_warp() % 4); }

    __device__ __forceinline__ static void run(const ForwardParams& params, Smem& smem) {
        const Place queries = place(params);
        if (queries.rows <= 0) {
            return;
        }
        const Sequence keys = sequence_of(params.cu_seqlens_k, params.rows_k, blockIdx.z);

        // Row i of the tile sees the keys below visible(i); blocks from `full` on need the mask.
        const int diagonal = params.causal ? queries.before_end + keys.rows + 1 : keys.rows;
        const auto visible = [&](int row) { return min(diagonal + row, keys.rows); };
        const int blocks = (max(visible(queries.rows - 1), 0) + BlockK - 1) / BlockK;
        const int full = max(visible(0), 0) / BlockK;

        // Prefetch: q, and the last block of k. `next` is what this thread copies first of a block.
        const int64_t batch = blockIdx.z;
        const int64_t head_kv = blockIdx.y / params.heads_per_kv;
        const int64_t last_row = keys.start + int64_t{blocks - 1} * BlockK;
        const Element* next_k = KeyCopy::source(
            static_cast<const Element*>(params.k) + batch * params.k_batch_stride +
                head_kv * params.k_head_stride + last_row * params.k_row_stride,
            params.k_row_stride);
        const Element* next_v = KeyCopy::source(
            static_cast<const Element*>(params.v) + batch * params.v_batch_stride +
                head_kv * params.v_head_stride + last_row * params.v_row_stride,
            params.v_row_stride);
        const int chunks = params.head_dim / 8;
        const auto fetch = [&](KeyTile& tile, const Element*& next, int64_t stride, int block) {
            KeyCopy::start(tile, next, stride, keys.rows - block * BlockK, chunks);
            next -= BlockK * stride;
            commit_copies();
        };
        if (blocks > 0) {
            const Element* q = static_cast<const Element*>(params.q) +
                               batch * params.q_batch_stride + blockIdx.y * params.q_head_stride +
                               queries.start * params.q_row_stride;
            QueryCopy::start(smem.q, QueryCopy::source(q, params.q_row_stride),
                             params.q_row_stride, queries.rows, chunks);
            fetch(smem.k, next_k, params.k_row_stride, blocks - 1);
        }

        const auto q_operand = operand_by_rows(smem.q, warp_row());
        const auto k_operand = operand_by_columns(smem.k, 0);
        const auto v_operand = operand_by_rows(smem.v, 0);
        Query q_registers;
        Output out = {};
        Rows sum = {};  // of the exponentials, over this lane's columns
        Rows shift;     // exponents are scores less the shift, in powers of two
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
            shift[tile][0] = shift[tile][1] = -FLT_MAX;  // below every score but that of a mask
        }

        for (int block = blocks - 1; block >= 0; --block) {
            wait_copies<0>();
            __syncthreads();  // every thread's k is there, before q k^T; v has been read by p v
            fetch(smem.v, next_v, params.v_row_stride, block);
            if (kQueryInRegisters && block == blocks - 1) {
                load(q_registers, q_operand);
            }
            Scores scores = {};
            multiply_q_k(scores, q_registers, q_operand, k_operand);
            if (block >= full) {
                const int first = warp_row() + lane_row();
                mask(scores, [&](int row) { return visible(first + row) - block * BlockK; });
            }

            wait_copies<0>();
            __syncthreads();  // every thread's v is there, before p v; k has been read by q k^T
            if (block > 0) {
                fetch(smem.k, next_k, params.k_row_stride, block - 1);
            }
            softmax(scores, shift, sum, out, params.scale_log2);
            multiply_p_v(out, scores, v_operand);
        }
        store(params, smem.q, shift, sum, out);
    }

    template <typename Operand>
    __device__ __forceinline__ static void load(Query& q, const Operand& q_operand) {
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
            for (int step = 0; step < kDimSteps; ++step) {
                load_matrices(q[tile][step], q_operand.address(16 * tile, step));
            }
        }
    }

    // scores = q k^T
    template <typename QueryOperand, typename KeyOperand>
    __device__ __forceinline__ static void multiply_q_k(Scores& scores, Query& q,
                                                        const QueryOperand& q_operand,
                                                        const KeyOperand& k_operand) {
#pragma unroll
        for (int step = 0; step < kDimSteps; ++step) {
            if constexpr (!kQueryInRegisters) {
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
                    load_matrices(q[tile][step], q_operand.address(16 * tile, step));
                }
            }
#pragma unroll
            for (int pair = 0; pair < kKeyTiles / 2; ++pair) {
                uint32_t k[4];
                load_matrices(k, k_operand.address(16 * pair, step));
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
                    multiply<Element>(scores[tile][2 * pair], q[tile][step], k[0], k[1]);
                    multiply<Element>(scores[tile][2 * pair + 1], q[tile][step], k[2], k[3]);
                }
            }
        }
    }

    // The scores of keys that a row does not see become -inf; row r of this lane's rows sees the
    // keys of the block below end(r).
    template <typename End>
    __device__ __forceinline__ static void mask(Scores& scores, const End& end) {
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int columns = end(16 * tile + 8 * half) - lane_column();
#pragma unroll
                for (int key = 0; key < kKeyTiles; ++key) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        if (8 * key + i >= columns) {
                            scores[tile][key][2 * half + i] = -INFINITY;
                        }
                    }
                }
            }
        }
    }

    // scores = 2^(scale * scores - shift), the exponentials whose sums are the softmax's
    // denominators. Where a row's largest score has outgrown its shift, it becomes the shift.
    __device__ __forceinline__ static void softmax(Scores& scores, Rows& shift, Rows& sum,
                                                   Output& out, float scale) {
        Rows largest;
        bool outgrown = false;
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float score = -INFINITY;
#pragma unroll
                for (int key = 0; key < kKeyTiles; ++key) {
                    const float* pair = &scores[tile][key][2 * half];
                    score = fmaxf(score, fmaxf(pair[0], pair[1]));
                }
                largest[tile][half] = quad_max(score) * scale;
                outgrown |= largest[tile][half] > shift[tile][half] + kSlack;
            }
        }
        if (__any_sync(kAllLanes, outgrown)) {
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    // a factor of 1 for the other rows: no row depends on its neighbours
                    const float old = shift[tile][half];
                    const bool grow = largest[tile][half] > old + kSlack;
                    shift[tile][half] = grow ? largest[tile][half] : old;
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
                    score = exp2_approx(score * scale - shift[tile][i / 2]);
                    sum[tile][i / 2] += score;
                }
            }
        }
    }

    // out += p v
    template <typename Operand>
    __device__ __forceinline__ static void multiply_p_v(Output& out, const Scores& p,
                                                        const Operand& v_operand) {
#pragma unroll
        for (int step = 0; step < kKeySteps; ++step) {
            uint32_t a[kRowTiles][4];
#pragma unroll
            for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float* pair = &p[tile][2 * step + i / 2][i % 2 * 2];
                    a[tile][i] = pack<Element>(pair[0], pair[1]);
                }
            }
#pragma unroll
            for (int pair = 0; pair < kDimTiles / 2; ++pair) {
                uint32_t v[4];
                load_matrices_transposed(v, v_operand.address(16 * step, pair));
#pragma unroll
                for (int tile = 0; tile < kRowTiles; ++tile) {
                    multiply<Element>(out[tile][2 * pair], a[tile], v[0], v[1]);
                    multiply<Element>(out[tile][2 * pair + 1], a[tile], v[2], v[3]);
                }
            }
        }
    }

    // out / sum, and lse. A row that saw no key has a sum of 0: it gives 0, and -inf as lse.
    // The outputs pass through the warp's own rows of `tile`, to be stored 16 bytes at a time.
    __device__ __forceinline__ static void store(const ForwardParams& params, QueryTile& tile,
                                                 const Rows& shift, const Rows& sum,
                                                 const Output& out) {
        const Place queries = place(params);  // once more: the loop is short of registers
        const int lane = lane_of_warp();
        char* bytes = reinterpret_cast<char*>(tile.elements);
        float* lse = params.lse + blockIdx.z * params.lse_batch_stride +
                     blockIdx.y * params.lse_head_stride + queries.start;
#pragma unroll
        for (int i = 0; i < 2 * kRowTiles; ++i) {
            const int row = warp_row() + 8 * i + lane / 4;
            const float total = quad_sum(sum[i / 2][i % 2]);
            const float factor = total == 0.f ? 0.f : reciprocal_approx(total);
            if (params.lse != nullptr && lane % 4 == 0 && row < queries.rows) {
                lse[row] =
                    total == 0.f ? -INFINITY : kLn2 * (shift[i / 2][i % 2] + log2_approx(total));
            }
#pragma unroll
            for (int column = 0; column < kDimTiles; ++column) {
                const float* pair = &out[i / 2][column][i % 2 * 2];
                *reinterpret_cast<uint32_t*>(bytes + QueryTile::offset(row, column) +
                                             4 * (lane % 4)) =
                    pack<Element>(pair[0] * factor, pair[1] * factor);
            }
        }
        __syncwarp();  // the lanes have written the warp's rows, before other lanes read them
        constexpr int kLanes = QueryTile::kSpan;  // side by side on a row
        const int chunks = params.head_dim / 8;
        Element* to = static_cast<Element*>(params.out) + blockIdx.z * params.out_batch_stride +
                      blockIdx.y * params.out_head_stride + queries.start * params.out_row_stride;
#pragma unroll
        for (int first = 0; first < kWarpRows; first += 32 / kLanes) {
            const int row = warp_row() + first + lane / kLanes;
#pragma unroll
            for (int chunk = lane % kLanes; chunk < QueryTile::kChunks; chunk += kLanes) {
                if (row < queries.rows && chunk < chunks) {
                    *reinterpret_cast<uint4*>(to + row * params.out_row_stride + 8 * chunk) =
                        *reinterpret_cast<const uint4*>(bytes + QueryTile::offset(row, chunk));
                }
            }
        }
    }
};

}  // namespace seqmix::attention
