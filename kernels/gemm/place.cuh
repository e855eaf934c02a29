// Which part of a problem a block computes.
//
// grid    x: tiles, eight rows of them at a time, so that blocks which run together share operands
//         in L2; y: parts of k, where it is split; z: matrices of the batch
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "gemm/params.h"

namespace seqmix::gemm {

// A tile of d.
struct Place {
    int64_t batch;
    int64_t weights;  // which of the batch of b
    int row;          // its first row
    int rows_end;     // rows from here on are not the tile's
    int column;       // its first column
};

// A part of k.
struct Depth {
    int begin;
    int end;
};

// Offset `index` of the groups, within [0, limit].
__device__ __forceinline__ int group_offset(const MultiplyParams& params, int index, int limit) {
    return min(max(params.offsets[index], 0), limit);
}

// With its rows in groups, a tile of rows belongs to one group, and the last tile of a group may
// have fewer rows. Places tile `tile` of those of all groups; past the last, in no row.
// A call of whole warps.
__device__ __forceinline__ void place_in_group(Place& place, const MultiplyParams& params,
                                               int tile, int rows_of_tile) {
    place.row = params.m;
    place.rows_end = params.m;
    const int lane = lane_of_warp();
    int before = 0;  // tiles of the groups so far
    for (int first = 0; first < params.groups; first += 32) {
        const int group = min(first + lane, params.groups - 1);
        const int begin = group_offset(params, group, params.m);
        const int end = first + lane < params.groups
                            ? max(group_offset(params, group + 1, params.m), begin)
                            : begin;
        const int tiles = (end - begin + rows_of_tile - 1) / rows_of_tile;
        const int until = before + warp_prefix_sum(tiles);
        const uint32_t found = __ballot_sync(kAllLanes, tile < until);
        if (found != 0) {
            const int owner = __ffs(static_cast<int>(found)) - 1;
            const int own_tile = tile - (until - tiles);
            place.row = __shfl_sync(kAllLanes, begin + own_tile * rows_of_tile, owner);
            place.rows_end = __shfl_sync(kAllLanes, end, owner);
            place.weights = first + owner;
            return;
        }
        before = __shfl_sync(kAllLanes, until, 31);
    }
}

// Where this block's tile lies, of Rows rows and `columns` columns. A call of whole warps.
template <int Rows>
__device__ __forceinline__ Place place_of_block(const MultiplyParams& params, int columns) {
    constexpr int kGroup = 8;
    const bool grouped = params.grouping == kRows;
    // groups may each need a tile more than their rows fill
    const int tiles_m = (params.m - 1) / Rows + 1 + (grouped ? params.groups - 1 : 0);
    const int tiles_n = (params.n - 1) / columns + 1;
    const int group = static_cast<int>(blockIdx.x) / (kGroup * tiles_n);
    const int in_group = static_cast<int>(blockIdx.x) - group * kGroup * tiles_n;
    const int rows = min(tiles_m - group * kGroup, kGroup);
    const int tile = group * kGroup + in_group % rows;
    Place place = {blockIdx.z, blockIdx.z, tile * Rows, params.m, in_group / rows * columns};
    if (grouped) {
        place_in_group(place, params, tile, Rows);
    }
    return place;
}

// What this block sums of k: all, its split, or its group's.
template <int BlockK>
__device__ __forceinline__ Depth depth_of_block(const MultiplyParams& params) {
    if (params.grouping == kDepth) {
        const int group = static_cast<int>(blockIdx.z);
        const int begin = group_offset(params, group, params.k);
        return {begin, max(group_offset(params, group + 1, params.k), begin)};
    }
    if (params.splits > 1) {
        const int blocks = (params.k + BlockK - 1) / BlockK;
        const int each = (blocks + params.splits - 1) / params.splits * BlockK;
        // 64 bits: the last parts may begin past the end
        const int64_t begin = static_cast<int64_t>(blockIdx.y) * each;
        return {static_cast<int>(min(begin, static_cast<int64_t>(params.k))),
                static_cast<int>(min(begin + each, static_cast<int64_t>(params.k)))};
    }
    return {0, params.k};
}

}  // namespace seqmix::gemm
