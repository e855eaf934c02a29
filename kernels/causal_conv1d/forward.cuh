// Causal convolution for every GPU since Ampere: a block computes a tile of out.
//
// grid    x: tiles of channels, then of steps, then rows of the batch; neighbours share rows of memory
// block   copies the steps and channels of its tile, and the steps before it, to shared memory, and
//         saves the final states of the sequences that end in it
// thread  owns groups of neighbours (tile.cuh): their windows of x in registers, and their results
//
// Everything but the width's class is a run-time field: the inner loop has a tap for each lag, and
// those that narrower filters lack are skipped by a branch that all threads take alike.
#pragma once

#include <climits>
#include <cstdint>

#include "causal_conv1d/filter.cuh"
#include "causal_conv1d/params.h"
#include "causal_conv1d/results.cuh"
#include "causal_conv1d/sequences.cuh"
#include "causal_conv1d/tile.cuh"
#include "common/async_copy.cuh"
#include "common/warp.cuh"

namespace seqmix::causal_conv1d {

template <typename Element, Axis Contiguous, int Chunks, int Width>
struct Forward {
    static constexpr int kThreads = causal_conv1d::kThreads;
    static constexpr int kBefore = Width - 1;
    using Tile = causal_conv1d::Tile<Element, Contiguous, Chunks, kBefore, 0>;
    using Shape = typename Tile::Shape;
    using Results = causal_conv1d::Results<Element, Shape>;
    static constexpr int kSteps = Shape::kGroupSteps;
    static constexpr int kChannels = Shape::kGroupChannels;

    struct Smem {
        Tile x;  // at the end the outputs, if they are staged
        Taps<Width, Shape::kMaxChannels> taps;
    };

    __device__ __forceinline__ static void run(const ForwardParams& params, Smem& smem) {
        const Shape shape = {params.line_chunks};
        const int seqlen = params.packing.seqlen, width = params.filter.width;
        const uint32_t channel_tiles = params.channel_tiles;
        const Place place =
            shape.place(blockIdx.x / channel_tiles, blockIdx.x % channel_tiles,
                        params.step_tiles, seqlen, params.dim);
        smem.x.fetch(shape, params.x, place, width - 1, 0);
        commit_copies();
        smem.taps.load(params.filter, place.channel, place.channels);
        Sequences sequences(params.packing, place.row);
        sequences.narrow(place.step, place.step + shape.steps());
        wait_copies<0>();
        __syncthreads();  // x and the taps are written, before other threads read them

        if (params.final_states.at != nullptr) {
            save_final_states(params, smem.x, shape, place, sequences);
        }
        const Sequence sequence = sequences.at(place.step);
        const bool plant = params.initial_states.at != nullptr && place.step == 0;
        if (plant) {
            plant_state<Element>(smem.x, shape, place, params.initial_states, width,
                                 sequence.index);
        }
        const bool staged = Results::staged(params.out);
        if (plant || staged) {
            // the state is planted, before windows are read, and final states have read x, before
            // outputs replace it
            __syncthreads();
        }
        const Range first = inner(sequence, seqlen);
        ThreadTaps<Width, kChannels> taps;
        if (Shape::kAlongDim) {
            taps.load(smem.taps, shape.group(0).channel);  // those of all groups
        }
        // from the last to the first: staged outputs replace no step that a later group needs
#pragma unroll 1
        for (int index = Shape::kGroups - 1; index >= 0; --index) {
            const Group group = shape.group(index);
            Results results;
            if (!Shape::kAlongDim) {
                taps.load(smem.taps, group.channel);
            }
            const int step = place.step + group.step;
            Range range = {0, min(seqlen - step, kSteps)};
            if (group.channel < place.channels && range.end > 0) {
                if (first.holds(step, step + kSteps) ||
                    inner(sequences.at(step), seqlen).holds(step, step + kSteps)) {
                    float x[Tile::kWindow][kChannels], numbers[kSteps][kChannels];
                    smem.x.read(x, shape, group);
#pragma unroll
                    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
                        for (int c = 0; c < kChannels; ++c) {
                            numbers[i][c] = taps.sum(x, kBefore + i, c, width);
                        }
                        activate(numbers[i], params.silu);
                    }
                    results.set(numbers);
                } else {
                    range = sequences.cover().within(step, kSteps);
                    convolve(results, params, smem, taps, shape, place, group, sequences, range);
                }
            }
            if (staged) {
                __syncwarp();  // all lanes have read their windows, before outputs replace them
            }
            results.store(params.out, smem.x, shape, place, group, range);
        }
        if (staged) {
            Results::store_lines(params.out, smem.x, shape, place, sequences.cover());
        }
    }

    // The steps that the tile alone has the windows of, since these lie in one sequence, or begin
    // or end with the row.
    __device__ __forceinline__ static Range inner(const Sequence& sequence, int seqlen) {
        if (sequence.index < 0) {
            return {0, 0};
        }
        return {sequence.start == 0 ? 0 : sequence.start + kBefore,
                sequence.end == seqlen ? INT_MAX : sequence.end};
    }

    // The outputs of the steps `range` of a group, step by step, one sequence after the other.
    __device__ __forceinline__ static void convolve(
        Results& results, const ForwardParams& params, Smem& smem,
        const ThreadTaps<Width, kChannels>& taps, Shape shape, const Place& place, Group group,
        const Sequences& sequences, Range range) {
        const int width = params.filter.width;
        const int first = place.step + group.step;
#pragma unroll 1
        for (int from = range.start; from < range.end;) {
            const Sequence sequence = sequences.at(first + from);
            const int start = sequence.start - first;
            const int to = min(sequence.end - first, range.end);
            // the inputs up to the current step, which is the last of them
            float window[Width][kChannels] = {};
#pragma unroll 1
            for (int step = from - kBefore; step < to; ++step) {
#pragma unroll
                for (int c = 0; c < kChannels; ++c) {
#pragma unroll
                    for (int i = 0; i < kBefore; ++i) {
                        window[i][c] = window[i + 1][c];
                    }
                    const int line = group.channel + c;
                    if (line < place.channels) {
                        window[kBefore][c] = input<Element>(
                            smem.x, shape, group.step + step, line, group.step + start,
                            params.initial_states, width, sequence.index, place.channel + line);
                    }
                }
                if (step >= from) {
                    float numbers[kChannels];
#pragma unroll
                    for (int c = 0; c < kChannels; ++c) {
                        numbers[c] = taps.sum(window, kBefore, c, width);
                    }
                    activate(numbers, params.silu);
                    results.set(step, numbers);
                }
            }
            from = to;
        }
    }

    __device__ __forceinline__ static void activate(float (&sums)[kChannels], int with) {
        if (with) {
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
                sums[c] = silu(sums[c]);
            }
        }
    }

    // The last inputs of the sequences that end in this tile; those of an empty one are its initial
    // states. Neighbouring threads take neighbouring steps of the state, then channels.
    __device__ __forceinline__ static void save_final_states(const ForwardParams& params,
                                                             Tile& tile, Shape shape,
                                                             const Place& place,
                                                             const Sequences& sequences) {
        const int width = params.filter.width, ages = width - 1;
        // ends are boundaries 1 and following; those at step 0 belong to the first tile
        const int next = place.step + shape.steps();
        const int last = min(sequences.high - 1, params.packing.sequences);
#pragma unroll 1
        for (int boundary = max(sequences.low + 1, 1); boundary <= last; ++boundary) {
            const int start = sequences.boundary(boundary - 1);
            const int end = sequences.boundary(boundary);
            const int sequence = sequences.first + boundary - 1;
            if (end > next || (end <= place.step && place.step > 0)) {
                continue;  // the last tile's, or the boundaries are out of order
            }
#pragma unroll 1
            for (int i = thread_of_block(); i < place.channels * ages; i += kThreads) {
                const int channel = i / ages, age = ages - i % ages;
                const int step = end - age;
                const Bits<Element> bits =
                    step >= start ? tile.at(shape, step - place.step, channel)
                                  : load_state<Element>(params.initial_states, width, sequence,
                                                        place.channel + channel, start - step);
                store_state<Element>(params.final_states, width, sequence,
                                     place.channel + channel, age, bits);
            }
        }
    }
};

}  // namespace seqmix::causal_conv1d
