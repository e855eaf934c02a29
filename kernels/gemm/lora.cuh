// Matrix multiplication with a low-rank adapter (LoRA): d = epilogue(a b + scale (a down) up).
//
// A block computes a tile of d as in gemm/multiply.cuh. On the same walk along k it multiplies a by
// down: the fragments of a serve both. Then a down, of 64 columns and rounded to the operands' type,
// is one more operand for 64 more steps of the sum, with up as the other. It never leaves the block;
// the blocks of one row of tiles each compute it.
//
// warp    owns WarpM x WarpN elements of the tile, and WarpM x kWarpRank of a down
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "gemm/operands.cuh"
#include "gemm/params.h"
#include "gemm/place.cuh"
#include "gemm/results.cuh"
#include "gemm/walk.cuh"

namespace seqmix::gemm {

template <typename Element, Axis AxisB, int BlockM, int BlockN, int BlockK, int WarpM, int WarpN,
          int Stages>
struct Lora {
    static constexpr int kRank = 64;  // the largest; what is missing is 0
    static constexpr int kWarpsM = BlockM / WarpM;
    static constexpr int kWarpsN = BlockN / WarpN;
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
    static constexpr int kWarpRank = kRank / kWarpsN;

    static_assert(BlockM % WarpM == 0 && BlockN % WarpN == 0, "warps divide the tile");
    static_assert(kWarpRank == 16 || kWarpRank == 32, "whole parts of 16 columns");

    using SideA = Side<Element, Axis::K, BlockM, BlockK, kThreads, Access::Strided>;
    using SideB = Side<Element, AxisB, BlockN, BlockK, kThreads, Access::Strided>;
    using SideDown = Side<Element, AxisB, kRank, BlockK, kThreads, Access::Strided>;
    using SideUp = Side<Element, AxisB, BlockN, kRank, kThreads, Access::Strided>;
    using Low = Tile<Element, BlockM, kRank>;
    using Results = gemm::Results<Element, kWarpsM, kWarpsN, WarpM, WarpN>;

    struct Stage {
        typename SideA::Tile a;
        typename SideB::Tile b;
        typename SideDown::Tile down;
    };
    struct Smem {
        union {
            Stage stages[Stages];
            Low low;                         // after the walk
            typename Results::Smem results;  // at the end
        };
        typename SideUp::Tile up;
    };
    static_assert(sizeof(Smem) == Stages * sizeof(Stage) + sizeof(Smem::up),
                  "what comes later fits in the ring");

    // The operands of one step along k.
    struct Fragments {
        uint32_t a[WarpM / 16][4];
        uint32_t b[WarpN / 16][4];
        uint32_t down[kWarpRank / 16][4];
    };
    using LowProducts = float[WarpM / 16][kWarpRank / 8][4];

    __device__ __forceinline__ static int warp_row() { return warp_of_block() / kWarpsN * WarpM; }
    __device__ __forceinline__ static int warp_column() { return warp_of_block() % kWarpsN; }

    __device__ __forceinline__ static void run(const MultiplyParams& params, Smem& smem) {
        const Place place = place_of_block<BlockM>(params, BlockN);
        const Element* next_a = SideA::source(params.a, place.batch, place.row, 0);
        const Element* next_b = SideB::source(params.b, place.weights, place.column, 0);
        const Element* next_down = SideDown::source(params.down, place.weights, 0, 0);
        const Element* next_up = SideUp::source(params.up, place.weights, place.column, 0);

        // belongs to the first group of copies of the walk
        SideUp::fetch(smem.up, next_up, params.up, params.n - place.column, params.rank);
        const auto fetch = [&](int block, int stage) {
            const int depth_left = params.k - block * BlockK;
            Stage& to = smem.stages[stage];
            SideA::fetch(to.a, next_a, params.a, params.m - place.row, depth_left);
            SideB::fetch(to.b, next_b, params.b, params.n - place.column, depth_left);
            SideDown::fetch(to.down, next_down, params.down, params.rank, depth_left);
        };
        const auto a = operand_a<Axis::K>(smem.stages[0].a, warp_row());
        const auto b = operand_b<AxisB>(smem.stages[0].b, warp_column() * WarpN);
        const auto down = operand_b<AxisB>(smem.stages[0].down, warp_column() * kWarpRank);
        const auto load_step = [&](Fragments& fragments, int stage, int step) {
            const int offset = stage * int{sizeof(Stage)};
            load<Axis::K>(fragments.a, a, offset, step);
            load<AxisB>(fragments.b, b, offset, step);
            load<AxisB>(fragments.down, down, offset, step);
        };
        typename Results::Products products = {};
        LowProducts low = {};
        walk<Stages, BlockK / 16, Fragments>(
            (params.k + BlockK - 1) / BlockK, fetch, load_step, [&](const Fragments& fragments) {
                multiply_step<Element>(products, fragments.a, fragments.b);
                multiply_step<Element>(low, fragments.a, fragments.down);
            });
        write_low(smem.low, low, params.adapter_scale);
        __syncthreads();  // all of a down, before it is loaded as an operand
        add_adapter(products, smem);
        __syncthreads();  // all loads of a down, before results overwrite it
        Results::store(params, smem.results, place, products);
    }

    // Writes the warp's part of scale (a down).
    __device__ __forceinline__ static void write_low(Low& tile, const LowProducts& low,
                                                     float scale) {
        const int row = warp_row() + lane_of_warp() / 4, pair = lane_of_warp() % 4;
#pragma unroll
        for (int part = 0; part < WarpM / 16; ++part) {
#pragma unroll
            for (int chunk = 0; chunk < kWarpRank / 8; ++chunk) {
                const int place = warp_column() * kWarpRank / 8 + chunk;
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const float* x = low[part][chunk] + 2 * half;
                    auto* to = reinterpret_cast<unsigned char*>(tile.elements) +
                               Low::offset(row + 16 * part + 8 * half, place) + 4 * pair;
                    *reinterpret_cast<uint32_t*>(to) = pack<Element>(scale * x[0], scale * x[1]);
                }
            }
        }
    }

    // products += low up
    __device__ __forceinline__ static void add_adapter(typename Results::Products& products,
                                                       const Smem& smem) {
        const auto low = operand_a<Axis::K>(smem.low, warp_row());
        const auto up = operand_b<AxisB>(smem.up, warp_column() * WarpN);
#pragma unroll
        for (int step = 0; step < kRank / 16; ++step) {
            uint32_t fragments_low[WarpM / 16][4];
            uint32_t fragments_up[WarpN / 16][4];
            load<Axis::K>(fragments_low, low, 0, step);
            load<AxisB>(fragments_up, up, 0, step);
            multiply_step<Element>(products, fragments_low, fragments_up);
        }
    }
};

}  // namespace seqmix::gemm
