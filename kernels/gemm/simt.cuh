// Matrix multiplication of f32 in f32, without tensor cores: a block computes a tile of d.
//
// grid    gemm/place.cuh
// block   walks along k, BlockK at a time, through a ring of Stages tiles of a and of b
// warp    owns WarpM rows, and 32 columns of each half of the tile: 8 x 4 lanes
// lane    owns four neighbouring rows, or eight: four and the same 32 further down; and a chunk of
//         eight columns of each half
//
// The halves of the tile are columns of b, or the left one of the gate's weights and the right one of
// b: then the same lane has both sums of an element of d.
//
// Each sum is made in the order of k, one fused multiply-add after the other.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/panel.cuh"
#include "gemm/params.h"
#include "gemm/place.cuh"
#include "gemm/walk.cuh"

namespace seqmix::gemm {

template <Axis AxisA, Axis AxisB, int BlockM, int BlockN, int BlockK, int WarpM, int Stages>
struct Simt {
    static constexpr int kWarpN = 64;
    static constexpr int kWarpsM = BlockM / WarpM;
    static constexpr int kWarpsN = BlockN / kWarpN;
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
    static constexpr int kHalf = BlockN / 2;
    static constexpr int kRows = WarpM / 8;  // of a lane

    static_assert(BlockM % WarpM == 0 && BlockN % kWarpN == 0, "warps divide the tile");
    static_assert(WarpM == 32 || WarpM == 64, "a lane owns four rows, or twice four");

    using PanelA = Panel<AxisA, BlockM, BlockK, kThreads>;
    using PanelB = Panel<AxisB, BlockN, BlockK, kThreads>;
    using Halves = typename PanelB::Halves;

    struct Stage {
        PanelA a;
        PanelB b;
    };
    struct Smem {
        union {
            Stage stages[Stages];
            float column_sums[kWarpsM][BlockN];  // at the end
        };
    };
    static_assert(sizeof(Smem) == Stages * sizeof(Stage), "sums of columns fit in the ring");

    // The operands of one step along k.
    struct Fragments {
        float a[kRows];
        float b[2][kChunk];
    };
    using Sums = float[kRows][2][kChunk];

    // The lane's place among 8 x 4. Neighbours of a pair have the same row, and so the same operands
    // of a; lanes that are two apart have the same columns, and so the same of b. In both cases 16
    // lanes that load 16 bytes each are served at once.
    __device__ __forceinline__ static int lane_row() {
        const int lane = lane_of_warp();
        return lane / 2 % 2 + lane / 8 * 2;
    }
    __device__ __forceinline__ static int lane_column() {
        const int lane = lane_of_warp();
        return lane % 2 + lane / 4 % 2 * 2;
    }

    // Row `index` of the lane, in the tile.
    __device__ __forceinline__ static int row(int index) {
        return warp_of_block() / kWarpsN * WarpM + index / 4 * 32 + 4 * lane_row() + index % 4;
    }
    // The first column of the lane, in either half.
    __device__ __forceinline__ static int column() {
        return warp_of_block() % kWarpsN * (kWarpN / 2) + kChunk * lane_column();
    }

    // Four neighbours of a line of a panel.
    __device__ __forceinline__ static void load4(float* x, const float* from) {
        const float4 four = *reinterpret_cast<const float4*>(from);
        x[0] = four.x;
        x[1] = four.y;
        x[2] = four.z;
        x[3] = four.w;
    }

    __device__ __forceinline__ static void multiply(Sums& sums, const Fragments& fragments) {
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int i = 0; i < kChunk; ++i) {
                    float& sum = sums[row][half][i];
                    sum = fmaf(fragments.a[row], fragments.b[half][i], sum);
                }
            }
        }
    }

    __device__ __forceinline__ static void run(const MultiplyParams& params, Smem& smem) {
        const bool gated = params.epilogue == kGate;
        const Halves halves = gated ? Halves::OfTwo : Halves::OfOne;
        const Place place = place_of_block<BlockM>(params, gated ? kHalf : BlockN);
        if (place.row >= place.rows_end) {
            return;  // more blocks than the groups have tiles
        }
        const Depth depth = depth_of_block<BlockK>(params);
        // the gate's weights lie as b does
        const bool of_gate = gated && !PanelB::in_second_half(params.b);
        const float* next_a = PanelA::source(params.a, place.batch, place.row, depth.begin);
        const float* next_b = PanelB::source(of_gate ? params.gate : params.b, place.weights,
                                             place.column, depth.begin, halves);

        const auto fetch = [&](int block, int stage) {
            const int depth_left = depth.end - depth.begin - block * BlockK;
            Stage& to = smem.stages[stage];
            to.a.fetch(next_a, params.a, place.rows_end - place.row, depth_left);
            to.b.fetch(next_b, params.b, params.n - place.column, depth_left, halves);
        };
        const int row_of_lane = row(0), column_of_lane = column();
        const auto load = [&](Fragments& fragments, int stage, int step) {
            const Stage& from = smem.stages[stage];
            const float* a = from.a.elements + step * PanelA::kLine + row_of_lane;
            const float* b = from.b.elements + step * PanelB::kLine + column_of_lane;
#pragma unroll
            for (int four = 0; four < kRows / 4; ++four) {
                load4(fragments.a + 4 * four, a + 32 * four);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                load4(fragments.b[half], b + half * kHalf);
                load4(fragments.b[half] + 4, b + half * kHalf + 4);
            }
        };
        Sums sums = {};
        walk<Stages, BlockK, Fragments>(
            (depth.end - depth.begin + BlockK - 1) / BlockK, fetch, load,
            [&](const Fragments& fragments) { multiply(sums, fragments); });
        store(params, smem, place, sums);
    }

    // Finishes the sums, a row of each lane at a time. The code of the epilogue exists once: the loops
    // around it are not unrolled.
    __device__ __forceinline__ static void store(const MultiplyParams& params, Smem& smem,
                                                 const Place& place, const Sums& sums) {
        const bool gated = params.epilogue == kGate;
        float column_sums[2][kChunk] = {};
        int non_finite = 0;
#pragma unroll 1
        for (int index = 0; index < kRows; ++index) {
            float left[kChunk], right[kChunk];
#pragma unroll
            for (int each = 0; each < kRows; ++each) {
                if (each == index) {
#pragma unroll
                    for (int i = 0; i < kChunk; ++i) {
                        left[i] = sums[each][0][i];
                        right[i] = sums[each][1][i];
                    }
                }
            }
            const int64_t row_of_d = place.row + row(index);
#pragma unroll 1
            for (int half = gated ? 1 : 0; half < 2; ++half) {
                const int column_of_d = place.column + column() + (gated ? 0 : half * kHalf);
                if (row_of_d >= place.rows_end || column_of_d >= params.n) {
                    continue;
                }
                float x[kChunk], gate[kChunk];
#pragma unroll
                for (int i = 0; i < kChunk; ++i) {
                    x[i] = half == 0 ? left[i] : right[i];
                    gate[i] = left[i];
                }
                if (params.partial != nullptr) {
                    store_partial(params, x, blockIdx.y, blockIdx.z, gridDim.z, row_of_d,
                                  column_of_d);
                    continue;
                }
                non_finite += finish_chunk<float>(params, x, gate,
                                                  {place.batch, place.weights, row_of_d},
                                                  column_of_d, params.n - column_of_d);
#pragma unroll
                for (int i = 0; i < kChunk; ++i) {
                    column_sums[0][i] += half == 0 ? x[i] : 0.f;
                    column_sums[1][i] += half == 1 ? x[i] : 0.f;
                }
            }
        }
        count_non_finite(params, non_finite);
        if (params.column_sums != nullptr) {
            store_column_sums(params, smem, place, column_sums);
        }
    }

    // Adds the lanes' sums over the rows of the tile.
    __device__ __forceinline__ static void store_column_sums(const MultiplyParams& params,
                                                             Smem& smem, const Place& place,
                                                             float (&column_sums)[2][kChunk]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float* to = smem.column_sums[warp_of_block() / kWarpsN] + half * kHalf + column();
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                float& sum = column_sums[half][i];
                // the bits of a lane's number that say its row
                sum += __shfl_xor_sync(kAllLanes, sum, 2);
                sum += __shfl_xor_sync(kAllLanes, sum, 8);
                sum += __shfl_xor_sync(kAllLanes, sum, 16);
                if (lane_row() == 0) {
                    to[i] = sum;
                }
            }
        }
        add_column_sums<kThreads, BlockM>(params, smem.column_sums, place);
    }
};

}  // namespace seqmix::gemm
