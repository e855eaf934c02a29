// Where the walks of gradients are: as place.cuh, but walks in both directions see the same chunks and
// spans.
//
// The gradient of a decay is a sum over pairs of steps on both sides of it. It begins anew at the
// borders of spans of so many steps, counted from a sequence's first one, where the state meets its
// gradient; and pairs of one chunk cancel only if both walks have the same chunks. So a walk from the
// last step begins at a multiple of kSpan, with steps that are not there.
#pragma once

#include <cstdint>

#include "linear_attention/params.h"
#include "linear_attention/place.cuh"

namespace seqmix::linear_attention {

// Steps of a span, or several spans.
constexpr int kSpan = 64;

// Spans of `span` steps.
__device__ __forceinline__ int spans_of(int steps, int span) { return (steps + span - 1) / span; }

// Where borders of the spans of sequence `index` lie in a workspace: there is one more than spans.
__device__ __forceinline__ int64_t span_slot(const int* starts, int steps, int span, int index) {
    return sequence_of(starts, steps, span, index).slot + index;
}

struct GradientPlace : Place {
    int segment;        // of the walk
    int segments;
    int lead;           // steps of the walk before the first one that is there
    int64_t span;       // slot of the border where the walk begins
    int spans;          // from there to the end of the walk, in its direction
};

__device__ __forceinline__ GradientPlace gradient_place(const Layer& layer, int width, int span,
                                                        Mode mode) {
    const int slices = (layer.dv + width - 1) / width;
    const int index = static_cast<int>(blockIdx.y);
    const int sequence = static_cast<int>(blockIdx.z);
    const Sequence all = sequence_of(layer.cu_seqlens, layer.steps, layer.segment, sequence);
    const bool reversed = layer.reversed != 0;
    const int begin = index < all.segments ? index * layer.segment : 0;
    // what only reads need not have the chunks of another walk, but it has its segments
    const int unit = mode == Mode::Read ? layer.segment : kSpan;
    const int end = reversed ? spans_of(all.steps, unit) * unit : all.steps;
    GradientPlace place;
    place.head = static_cast<int>(blockIdx.x) / slices;
    place.channel = static_cast<int>(blockIdx.x) % slices * width;
    place.start = reversed ? all.start + end - 1 - begin : all.start + begin;
    place.direction = reversed ? -1 : 1;
    place.steps = min(end - begin, layer.segment);
    place.slot = all.slot + index;
    place.first_slot = all.slot;
    place.first = index == 0;
    place.last = index + 1 == all.segments;
    place.exists = index < all.segments;
    place.segment = index;
    place.segments = all.segments;
    place.lead = reversed && index == 0 ? end - all.steps : 0;
    place.span = span_slot(layer.cu_seqlens, layer.steps, span, sequence) +
                 (reversed ? end - begin : begin) / span;
    place.spans = spans_of(place.steps, span);
    return place;
}

// The block's decays in the n-th step of the walk.
__device__ __forceinline__ const float* decays_at(const Layer& layer, const GradientPlace& place,
                                                  int n) {
    return layer.decays.at + blockIdx.z * layer.decays.batch_stride +
           (place.start + place.direction * n) * layer.decays.step_stride +
           place.head * layer.decays.head_stride;
}

}  // namespace seqmix::linear_attention
