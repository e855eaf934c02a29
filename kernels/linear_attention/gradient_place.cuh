// Where the walks of gradients are: as place.cuh, but walks in both directions see the same chunks and
// spans.
//
// The gradient of a decay is a sum over pairs of steps on both sides of it. It begins anew at the
// borders of spans of so many steps, counted from a sequence's first one, where the state meets its
// gradient; and pairs of one chunk cancel only if both walks have the same chunks. So a walk from the
// last step begins at a multiple of kSpan, with steps that are not there.
//
// A step's own key and value pass no decay on their way to its query, and are left out of these sums.
// With a bonus, those of the step before it pass none either. Then a step of the walks is one in time
// for queries, and the one before for keys, values and decays: what passes none is in one step again,
// and there is one more.
#pragma once

#include <cstdint>

#include "linear_attention/gradient_params.h"
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
    int span;           // slot of the border where the walk begins: their states lie in memory
    int spans;          // from there to the end of the walk, in its direction

    // Queries and outputs are those of steps from `lead` up to this one.
    __device__ __forceinline__ int queries_end(const GradientWalkParams& params) const {
        return last ? steps - params.shift : steps;
    }
    // Keys and values begin here.
    __device__ __forceinline__ int first_key(const GradientWalkParams& params) const {
        return first ? lead + params.shift : lead;
    }
    // Values end here: what the last step adds to the last state meets its gradient without a decay in
    // between, and the walk that stores states for that leaves it out.
    __device__ __forceinline__ int values_end(const GradientWalkParams& params) const {
        return last && params.spans != nullptr && params.dots == nullptr ? steps - 1 : steps;
    }
    // Decays, each of which acts before the step's own update, begin here. Seen from the last step, a
    // decay in time lies behind its step: then there is none before the first; or if the walk begins
    // with the state behind its segment, that has passed it.
    __device__ __forceinline__ int first_decay(const GradientWalkParams& params) const {
        const bool late = params.layer.reversed != 0 || params.shift != 0;
        const bool behind = first || params.mode == static_cast<int>(Mode::Read);
        return late && behind ? lead + 1 : lead;
    }
    // Whether there is one behind the last step as well.
    __device__ __forceinline__ bool decays_behind(const GradientWalkParams& params) const {
        return params.layer.decays.at != nullptr && params.layer.reversed != 0 &&
               params.shift == 0 && last && steps > lead;
    }
};

__device__ __forceinline__ GradientPlace gradient_place(const GradientWalkParams& params,
                                                        int width) {
    const Layer& layer = params.layer;
    const int span = params.span;
    const int slices = (layer.dv + width - 1) / width;
    const int index = static_cast<int>(blockIdx.y);
    const int sequence = static_cast<int>(blockIdx.z);
    const Sequence all = sequence_of(layer.cu_seqlens, layer.steps, layer.segment, sequence);
    const bool reversed = layer.reversed != 0;
    const int steps = all.steps + params.shift;
    const int begin = index < all.segments ? index * layer.segment : 0;
    // what only reads need not have the chunks of another walk, but it has its segments
    const int unit = params.mode == static_cast<int>(Mode::Read) ? layer.segment : kSpan;
    const int end = reversed ? spans_of(steps, unit) * unit : steps;
    GradientPlace place;
    place.head = static_cast<int>(blockIdx.x) / slices;
    place.channel = static_cast<int>(blockIdx.x) % slices * width;
    place.start = reversed ? all.start + end - 1 - begin : all.start + begin;
    place.direction = reversed ? -1 : 1;
    place.last = index + 1 == all.segments;
    place.steps = place.last ? end - begin : layer.segment;
    place.slot = all.slot + index;
    place.first_slot = all.slot;
    place.first = index == 0;
    place.exists = index < all.segments;
    place.segment = index;
    place.segments = all.segments;
    place.lead = reversed && index == 0 ? end - steps : 0;
    place.span = static_cast<int>(span_slot(layer.cu_seqlens, layer.steps, span, sequence)) +
                 (reversed ? end - begin : begin) / span;
    place.spans = spans_of(place.steps, span);
    return place;
}

// The block's decays before the n-th step of the walk.
__device__ __forceinline__ const float* decays_at(const Layer& layer, const GradientPlace& place,
                                                  int n) {
    return layer.decays.at + blockIdx.z * layer.decays.batch_stride +
           (place.start + place.direction * n) * layer.decays.step_stride +
           place.head * layer.decays.head_stride;
}

}  // namespace seqmix::linear_attention
