// Matrix multiplication for every GPU since Ampere: a block computes a tile of d.
//
// grid    gemm/place.cuh
// block   walks along k, BlockK at a time, through a ring of Stages tiles of a and of b
// warp    owns WarpM x WarpN elements of the tile
// lane    holds two neighbours in two rows of each 16x8 product (common/mma.cuh)
#pragma once

#include <cstdint>

#include "gemm/operands.cuh"
#include "gemm/params.h"
#include "gemm/place.cuh"
#include "gemm/results.cuh"
#include "gemm/walk.cuh"

namespace seqmix::gemm {

template <typename Element, Axis AxisA, Axis AxisB, int BlockM, int BlockN, int BlockK, int WarpM,
          int WarpN, int Stages, Access Copies>
struct Multiply {
    static constexpr int kWarpsM = BlockM / WarpM;
    static constexpr int kWarpsN = BlockN / WarpN;
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN;

    static_assert(BlockM % WarpM == 0 && BlockN % WarpN == 0, "warps divide the tile");
    static_assert(WarpM == 16 || WarpM == 32 || WarpM == 64, "the swizzle permutes 64 columns");
    static_assert(WarpN == 32 || WarpN == 64, "an Exchange has 4 or 8 chunks");

    using SideA = Side<Element, AxisA, BlockM, BlockK, kThreads, Copies>;
    using SideB = Side<Element, AxisB, BlockN, BlockK, kThreads, Copies>;
    using Columns = typename SideB::Columns;
    using Results = gemm::Results<Element, kWarpsM, kWarpsN, WarpM, WarpN>;

    struct Stage {
        typename SideA::Tile a;
        typename SideB::Tile b;
    };
    struct Smem {
        union {
            Stage stages[Stages];
            typename Results::Smem results;  // at the end
        };
    };
    static_assert(sizeof(Smem) == Stages * sizeof(Stage), "results fit in the ring");

    // The operands of one step along k.
    struct Fragments {
        uint32_t a[WarpM / 16][4];
        uint32_t b[WarpN / 16][4];
    };

    __device__ __forceinline__ static void run(const MultiplyParams& params, Smem& smem) {
        const bool gated = params.epilogue == kGate;
        const Columns columns = gated ? Columns::OfTwo : Columns::OfOne;
        const Place place = place_of_block<BlockM>(params, gated ? BlockN / 2 : BlockN);
        if (place.row >= place.rows_end) {
            return;  // more blocks than the groups have tiles
        }
        const Depth depth = depth_of_block<BlockK>(params);
        // the gate's weights lie as b does
        const Matrix& b_or_gate = gated && !SideB::second() ? params.gate : params.b;
        const Element* next_a = SideA::source(params.a, place.batch, place.row, depth.begin);
        const Element* next_b =
            SideB::source(b_or_gate, place.weights, place.column, depth.begin, columns);

        const auto fetch = [&](int block, int stage) {
            const int depth_left = depth.end - depth.begin - block * BlockK;
            SideA::fetch(smem.stages[stage].a, next_a, params.a, place.rows_end - place.row,
                         depth_left);
            SideB::fetch(smem.stages[stage].b, next_b, params.b, params.n - place.column,
                         depth_left, columns);
        };
        const auto a = operand_a<AxisA>(smem.stages[0].a, warp_of_block() / kWarpsN * WarpM);
        const auto b = operand_b<AxisB>(smem.stages[0].b, warp_of_block() % kWarpsN * WarpN);
        const auto load_step = [&](Fragments& fragments, int stage, int step) {
            load<AxisA>(fragments.a, a, stage * int{sizeof(Stage)}, step);
            load<AxisB>(fragments.b, b, stage * int{sizeof(Stage)}, step);
        };
        typename Results::Products products = {};
        walk<Stages, BlockK / 16, Fragments>(
            (depth.end - depth.begin + BlockK - 1) / BlockK, fetch, load_step,
            [&](const Fragments& fragments) {
                multiply_step<Element>(products, fragments.a, fragments.b);
            });
        Results::store(params, smem.results, place, products);
    }
};

}  // namespace seqmix::gemm
