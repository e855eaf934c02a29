// Which sequence, segment, head and channels a block or a warp works on.
//
// The channels of the values do not see each other, so heads are cut into slices of them. A sequence
// is cut into tiles of a few chunks of 16 steps, and a long one into segments of many tiles. All are
// counted in the order of the walk, which may begin at the last step.
#pragma once

#include <cstdint>

#include "linear_attention/params.h"

namespace seqmix::linear_attention {

// Steps of a chunk, the unit of computation in time.
constexpr int kChunk = 16;

// What a walk does; src/abi/linear_attention knows the numbers.
enum class Mode {
    Whole,   // states and outputs: segments begin with the states in `segments`
    States,  // states only: segments begin with zeros, and the states after them are stored there;
             // not of the last ones, behind which none waits
    All,     // the same of all segments
    Read,    // outputs only: all steps read the state in the sequence's first slot
};

// The steps of a sequence, and where its segments lie in a workspace.
struct Sequence {
    int start;      // its first step in the row of the batch
    int steps;
    int segments;   // at least 1, so that states pass through a sequence without steps
    int64_t slot;   // of the first segment
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

// The steps and channels that a block walks over: slices of heads lie along x of the grid, segments
// along y, sequences along z.
struct Place {
    int head;
    int channel;         // the first one of the values
    int start;           // the first step of the walk in the row of the batch
    int direction;       // from one step of the walk to the next: 1 or -1
    int steps;
    int64_t slot;        // of the segment in a workspace
    int64_t first_slot;  // of the sequence's first segment
    bool first;          // segment of the walk
    bool last;
    bool exists;
};

// The place of a block that takes `width` channels of the values.
__device__ __forceinline__ Place place_of_block(const Layer& layer, int width) {
    const int slices = (layer.dv + width - 1) / width;
    const int index = static_cast<int>(blockIdx.y);
    const Sequence all = sequence_of(layer.cu_seqlens, layer.steps, layer.segment,
                                     static_cast<int>(blockIdx.z));
    const int begin = index < all.segments ? index * layer.segment : 0;
    const bool reversed = layer.reversed != 0;
    return {static_cast<int>(blockIdx.x) / slices,
            static_cast<int>(blockIdx.x) % slices * width,
            reversed ? all.start + all.steps - 1 - begin : all.start + begin,
            reversed ? -1 : 1,
            min(all.steps - begin, layer.segment),
            all.slot + index,
            all.slot,
            index == 0,
            index + 1 == all.segments,
            index < all.segments};
}

// The address of the block's head in the n-th step of the walk.
template <typename Element>
__device__ __forceinline__ Element* row_of(const Rows& rows, const Place& place, int n) {
    return static_cast<Element*>(rows.at) + static_cast<int>(blockIdx.z) * rows.batch_stride +
           (place.start + place.direction * n) * rows.step_stride +
           place.head / static_cast<int>(rows.shared) * rows.head_stride;
}

// From there to the next step of the walk.
__device__ __forceinline__ int64_t stride_of(const Rows& rows, const Place& place) {
    return place.direction * rows.step_stride;
}

// The block's head in its sequence, from the state of `channel` of the values on.
__device__ __forceinline__ float* state_of(const States& states, const Place& place, int channel) {
    return states.at + static_cast<int>(blockIdx.z) * states.sequence_stride + place.head * states.head_stride +
           channel * states.value_stride;
}

// Where slot `slot` of a workspace of states holds those of the block's head.
__device__ __forceinline__ States slot_of(float* segments, const Layer& layer, int64_t slot) {
    const int64_t head = static_cast<int64_t>(layer.dk) * layer.dv;
    // the sequence is part of the slot
    return {segments + slot * layer.heads * head, 0, head, layer.dv, 1};
}

}  // namespace seqmix::linear_attention
