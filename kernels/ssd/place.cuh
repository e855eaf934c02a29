// Which sequence, segment, head and channels a block or a warp works on.
//
// A head's channels do not see each other, so heads are cut into slices of kSlice channels. The
// slices of a group share B and C; a block takes a few neighbours of them. A sequence is cut into
// chunks of kChunk steps, the unit of computation, and a long one into segments of many chunks.
//
// A slice of a chunk is a square whose rows are 128 bytes: 64 channels, or 32 of f32.
#pragma once

#include <cstdint>

#include "ssd/params.h"

namespace seqmix::ssd {

template <typename Element>
constexpr int kChunk = 128 / sizeof(Element);

template <typename Element>
constexpr int kSlice = kChunk<Element>;

// Neighbouring channels of one head.
struct Slice {
    int head;
    int channel;   // the first one
    int channels;  // how many there are; 0 behind a group's last slice
};

// Slice `index` of the block, which has `slices` of them of `width` channels; blocks lie along x of
// the grid, group by group.
__device__ __forceinline__ Slice slice_of_block(const Layer& layer, int width, int slices,
                                                int index) {
    const int of_head = (layer.headdim + width - 1) / width;
    const int of_group = layer.heads_per_group * of_head;
    const int blocks = (of_group + slices - 1) / slices;
    const int group = static_cast<int>(blockIdx.x) / blocks;
    const int slice = static_cast<int>(blockIdx.x) % blocks * slices + index;
    const int channel = slice % of_head * width;
    const int head = group * layer.heads_per_group + slice / of_head;
    return {head, channel, slice < of_group ? min(layer.headdim - channel, width) : 0};
}

__device__ __forceinline__ int group_of_block(const Layer& layer, int width, int slices) {
    return slice_of_block(layer, width, slices, 0).head / layer.heads_per_group;
}

// The steps of a sequence, and where its segments lie in a workspace.
struct Sequence {
    int start;       // its first step in the row of the batch
    int steps;
    int segments;    // at least 1, so that states pass through a sequence without steps
    int64_t slot;    // of the first segment
};

// Sequence `index` of `steps` steps, or of those that `starts` gives it. The values of `starts` come
// from the device's memory, where nobody has checked them: they are clamped to the tensor's steps.
//
// Slots are counted through all steps of the call, and one is added for each sequence: no two
// segments share one, and there are at most all steps / segment + sequences.
__device__ __forceinline__ Sequence sequence_of(const int* starts, int steps, int segment,
                                                int index) {
    int start = 0;
    int64_t before = static_cast<int64_t>(index) * steps;
    if (starts != nullptr) {
        start = min(max(starts[index], 0), steps);
        before = start;
        steps = min(max(starts[index + 1], start), steps) - start;
    }
    const int segments = max((steps + segment - 1) / segment, 1);
    return {start, steps, segments, before / segment + index};
}

// The steps that a block walks over: a segment of a sequence. Segments lie along y of the grid,
// sequences along z.
struct Place {
    int start;     // the first step in the row of the batch
    int steps;
    int64_t slot;  // in a workspace
    bool first;    // of the sequence
    bool last;
    bool exists;
};

__device__ __forceinline__ Place place_of_block(const Layer& layer) {
    const int index = static_cast<int>(blockIdx.y);
    const Sequence all = sequence_of(layer.cu_seqlens, layer.steps, layer.segment,
                                     static_cast<int>(blockIdx.z));
    const int begin = index < all.segments ? index * layer.segment : 0;
    return {all.start + begin,
            min(all.steps - begin, layer.segment),
            all.slot + index,
            index == 0,
            index + 1 == all.segments,
            index < all.segments};
}

// Where the chunk of `chunk` steps that begins `step` steps into the place lies in a workspace that
// has a slot for each chunk, counted as those of segments are.
__device__ __forceinline__ int64_t chunk_slot(const Layer& layer, const Place& place, int chunk,
                                              int step) {
    const Sequence all = sequence_of(layer.cu_seqlens, layer.steps, chunk,
                                     static_cast<int>(blockIdx.z));
    return all.slot + (place.start - all.start + step) / chunk;
}

// The address of a step's first element of a head or group.
template <typename Element>
__device__ __forceinline__ Element* row_of(const Rows& rows, int step, int head) {
    return static_cast<Element*>(rows.at) + blockIdx.z * rows.batch_stride +
           step * rows.step_stride + head * rows.head_stride;
}

// The state of a head's channel in the block's sequence.
__device__ __forceinline__ float* state_of(const States& states, const Slice& slice) {
    return states.at + blockIdx.z * states.sequence_stride + slice.head * states.head_stride +
           slice.channel * states.channel_stride;
}

}  // namespace seqmix::ssd
