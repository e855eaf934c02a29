// Which steps a block works on, and which of them see each other.
//
// A sequence is cut into tiles of kRows steps, and into chunks of whole tiles. Only steps of one chunk
// have scores with each other; if all is quadratic, the chunk is longer than every sequence.
#pragma once

#include <cstdint>

#include "gated_attention_unit/params.h"

namespace seqmix::gated_attention_unit {

// Rows of a tile of scores.
constexpr int kRows = 64;

// Channels of values that share a unit of states.
constexpr int kSlice = 64;

// The steps of a sequence.
struct Sequence {
    int start;       // its first step in the row of the batch
    int steps;
    int64_t before;  // steps before it, counted through all of the call
    int index;

    // Where the part of `length` steps that is number `part` lies in a workspace. One slot is added for
    // each sequence: no two parts share one, and there are at most all steps / length + sequences.
    __device__ __forceinline__ int64_t slot(int length, int part) const {
        return before / length + index + part;
    }
};

// Sequence `index`. The values of cu_seqlens come from the device's memory, where nobody has checked
// them: they are clamped to the tensor's steps.
__device__ __forceinline__ Sequence sequence_of(const Layer& layer, int index) {
    const int steps = layer.steps;
    if (layer.cu_seqlens == nullptr) {
        return {0, steps, static_cast<int64_t>(index) * steps, index};
    }
    const int start = min(max(layer.cu_seqlens[index], 0), steps);
    const int end = min(max(layer.cu_seqlens[index + 1], start), steps);
    return {start, end - start, start, index};
}

// The address of a step's first element in the block's sequence, which lies along z of the grid.
template <typename Element>
__device__ __forceinline__ Element* row_of(const Rows& rows, const Sequence& sequence, int step) {
    return static_cast<Element*>(rows.at) + blockIdx.z * rows.batch_stride +
           (sequence.start + step) * rows.step_stride;
}

// The chunk that holds a step.
struct Chunk {
    int index;
    int start;
    int end;
    bool first;  // of its sequence
    bool last;
};

__device__ __forceinline__ Chunk chunk_of(const Layer& layer, const Sequence& sequence, int step) {
    const int index = step / layer.chunk;
    const int start = index * layer.chunk;
    const int end = min(sequence.steps, start + layer.chunk);
    return {index, start, end, index == 0, end == sequence.steps};
}

// Whether rows of this chunk meet states of others, or of all if not causal.
__device__ __forceinline__ bool meets_states(const Layer& layer, const Chunk& chunk) {
    return !(layer.causal && (layer.reversed ? chunk.last : chunk.first));
}

// The slot of what rows of this chunk meet: all chunks share one if not causal.
__device__ __forceinline__ int64_t slot_met(const Layer& layer, const Sequence& sequence,
                                            const Chunk& chunk) {
    return sequence.slot(layer.chunk, layer.causal ? chunk.index : 0);
}

// The columns that the rows of a tile from `row` on have scores with.
struct Columns {
    int first;  // a multiple of kRows
    int end;
};

__device__ __forceinline__ Columns columns_of(const Layer& layer, const Chunk& chunk, int row) {
    if (!layer.causal) {
        return {chunk.start, chunk.end};
    }
    return layer.reversed ? Columns{row, chunk.end} : Columns{chunk.start, min(chunk.end, row + kRows)};
}

// Which elements of a tile of scores exist. Rows and columns count from the tile's first ones.
struct Sight {
    int columns;   // that there are
    int lowest;    // the least row - column that sees
    int highest;   // the largest

    // The tile from column `first` on of the rows from `row` on.
    __device__ __forceinline__ static Sight of(const Layer& layer, int row, int first, int end) {
        const int diagonal = first - row;  // row - column, where the steps are the same
        constexpr int kAny = 1 << 20;
        return {end - first, layer.causal && !layer.reversed ? diagonal : -kAny,
                layer.causal && layer.reversed ? diagonal : kAny};
    }

    __device__ __forceinline__ bool sees(int row, int column) const {
        const int distance = row - column;
        return column < columns && distance >= lowest && distance <= highest;
    }

    // Whether all of a tile of so many columns sees each other.
    __device__ __forceinline__ bool all(int width) const {
        return width <= columns && 1 - width >= lowest && kRows - 1 <= highest;
    }

    // Whether any element does of the 16x16 ones from there on; both are multiples of 16.
    __device__ __forceinline__ bool any(int row, int column) const {
        const int distance = row - column;
        return column < columns && distance + 15 >= lowest && distance - 15 <= highest;
    }
};

}  // namespace seqmix::gated_attention_unit
