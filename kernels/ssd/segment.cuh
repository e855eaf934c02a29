// The end states of segments: what a segment would leave behind if the state before it were zeros,
// and what it multiplies that state by. Where sequences and heads are too few to fill the device,
// the segments of a sequence then run side by side (forward.cuh), each from its true start state.
//
// grid    as in forward.cuh; the last segment of a sequence has nothing to do
// block   walks over the segment, kChunk steps at a time, while the next ones are on their way
// warp    owns the state of 16 * Tiles channels of one slice
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "ssd/params.h"
#include "ssd/place.cuh"
#include "ssd/slices.cuh"
#include "ssd/state.cuh"
#include "ssd/steps.cuh"

namespace seqmix::ssd {

template <typename Element_, int Size, int Tiles>
struct Segment {
    using Element = Element_;
    using State = seqmix::ssd::State<Element, Size, Tiles>;
    using Slices = seqmix::ssd::Slices<State>;

    static constexpr int kThreads = Slices::kThreads;
    static constexpr int kSlices = Slices::kCount;
    static constexpr int kStages = 2;

    using CoefficientTile = Tile<Element, kChunk, Size>;
    using ChannelTile = Tile<Element, kChunk, kSlice>;
    using CoefficientCopy = Copy<kThreads, CoefficientTile>;
    using ChannelCopy = Copy<kThreads, ChannelTile>;

    struct Stage {
        CoefficientTile b;
        ChannelTile x[kSlices];
        Steps steps[kSlices];
    };
    struct Smem {
        Stage stages[kStages];
    };

    __device__ __forceinline__ static void run(const SegmentParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Place place = place_of_block(layer);
        if (!place.exists || place.last) {
            return;
        }
        const int chunks = (place.steps + kChunk - 1) / kChunk;
        fetch(layer, place, smem.stages[0], 0);
        Slices::template scan<Element>(smem.stages[0].steps, layer,
                                       Slices::template inputs<Element>(layer, place, 0),
                                       place.steps);
        State state;
        state.clear();
        // of all chunks so far, of the slice whose steps this warp scans
        float decay = 1.f;
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const int next_step = (chunk + 1) * kChunk;
            const StepInputs inputs =
                Slices::template inputs<Element>(layer, place, next_step);
            wait_copies<0>();
            // all tiles and decays of the chunk, before they are read; and all reads of the chunk
            // before it, before the next fetch overwrites it
            __syncthreads();
            if (chunk + 1 < chunks) {
                Stage& next = smem.stages[(chunk + 1) % kStages];
                fetch(layer, place, next, next_step);
                Slices::template scan<Element>(next.steps, layer, inputs, place.steps - next_step);
            }
            const Stage& stage = smem.stages[chunk % kStages];
            const Steps& steps = stage.steps[Slices::of_warp()];
            state.advance(stage.x[Slices::of_warp()], Slices::warp_channel(), stage.b, steps.weight,
                          steps.decay);
            if (kNarrow<Element> && steps.unit != 1.f) {
                state.multiply_by(steps.unit);
            }
            decay *= steps.decay * steps.unit;
        }
        const Slice slice = Slices::channels_of_warp(layer);
        const int64_t head = place.slot * layer.heads + slice.head;
        state.store(params.states + (head * layer.headdim + slice.channel) * layer.dstate,
                    slice.channels, layer.dstate, layer.dstate);
        // by the warp and lane of the head's first channel
        if (slice.channel == 0 && slice.channels > 0 && lane_of_warp() == 0) {
            params.decays[head] = decay;
        }
    }

    // Starts the copies of b and x of the chunk that begins `step` steps into the segment.
    __device__ __forceinline__ static void fetch(const Layer& layer, const Place& place,
                                                 Stage& stage, int step) {
        const int rows = place.steps - step;
        const Element* b =
            row_of<const Element>(layer.b, place.start + step, group_of_block(layer, kSlices));
        CoefficientCopy::start(stage.b, CoefficientCopy::source(b, layer.b.step_stride),
                               layer.b.step_stride, rows, layer.dstate / 8);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
            const Slice slice = Slices::slice(layer, i);
            const Element* x =
                row_of<const Element>(layer.x, place.start + step, slice.head) + slice.channel;
            ChannelCopy::start(stage.x[i], ChannelCopy::source(x, layer.x.step_stride),
                               layer.x.step_stride, rows, slice.channels / 8);
        }
        commit_copies();
    }
};

}  // namespace seqmix::ssd
