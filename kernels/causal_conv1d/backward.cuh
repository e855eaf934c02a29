// Gradients of the causal convolution for every GPU since Ampere. With s the sums of the forward and
// ds = dout activation'(s), where lag counts steps back from the current one:
//
//   dx[t]        = sum over lags of weight[lag] ds[t + lag],  and dfinal_states where x[t] is one
//   dweight[lag] = sum over rows and t of ds[t] x[t - lag]
//   dbias        = sum over rows and t of ds[t]
//
// grid    x: tiles of channels, then slots: each a share of the tiles of steps of all rows
// block   walks over the tiles of its slot: copies x and dout and the steps next to them to shared
//         memory, computes dx, and adds to its own sums for dweight and dbias
// thread  owns groups of neighbours (tile.cuh). It computes the ds that it needs itself, also those
//         of the steps behind its group
//
// Sums stay within a slot here; Sum adds those of the slots in their order. There are no atomics.
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
struct Backward {
    static constexpr int kThreads = causal_conv1d::kThreads;
    static constexpr int kBeside = Width - 1;
    using TileX = Tile<Element, Contiguous, Chunks, kBeside, kBeside>;
    using TileDout = Tile<Element, Contiguous, Chunks, 0, kBeside>;
    using Shape = typename TileX::Shape;
    using Results = causal_conv1d::Results<Element, Shape>;
    static constexpr int kSteps = Shape::kGroupSteps;
    static constexpr int kChannels = Shape::kGroupChannels;
    using Taps = ThreadTaps<Width, kChannels>;

    struct Smem {
        TileX x;
        TileDout dout;  // at the end of a tile dx, if it is staged
        causal_conv1d::Taps<Width, Shape::kMaxChannels> taps;
        causal_conv1d::Taps<Width, Shape::kMaxChannels> sums;  // dweight and dbias
    };

    // A thread's sums for dweight and dbias.
    struct Sums {
        float of_lag[Width][kChannels];
        float bias[kChannels];
    };

    __device__ __forceinline__ static void run(const BackwardParams& params, Smem& smem) {
        const Shape shape = {params.line_chunks};
        const int seqlen = params.packing.seqlen, width = params.filter.width;
        const uint32_t channel_tiles = params.channel_tiles;
        const int slot = static_cast<int>(blockIdx.x / channel_tiles);
        const uint32_t channel_tile = blockIdx.x % channel_tiles;
        const bool staged = Results::staged(params.dx);
        const int tile_end = min((slot + 1) * params.slot_tiles, params.tiles);
        int channel = 0, channels = 0;
        Sums sums = {};
        Taps taps;
#pragma unroll 1
        for (int tile = slot * params.slot_tiles; tile < tile_end; ++tile) {
            const Place place =
                shape.place(tile, channel_tile, params.step_tiles, seqlen, params.dim);
            __syncthreads();  // all have read the last tile, before this one replaces it
            smem.x.fetch(shape, params.x, place, width - 1, width - 1);
            smem.dout.fetch(shape, params.dout, place, 0, width - 1);
            commit_copies();
            if (channels == 0) {
                channel = place.channel;
                channels = place.channels;
                smem.taps.load(params.filter, channel, channels);
                smem.sums.clear();
            }
            Sequences sequences(params.packing, place.row);
            sequences.narrow(place.step, place.step + shape.steps());
            wait_copies<0>();
            __syncthreads();  // the tile and the taps are written, before other threads read them

            if (params.dinitial_states.at != nullptr) {
                save_dinitial_states(params, smem, shape, place, sequences);
            }
            const Sequence sequence = sequences.at(place.step);
            const bool plant = params.initial_states.at != nullptr && place.step == 0;
            if (plant) {
                plant_state<Element>(smem.x, shape, place, params.initial_states, width,
                                     sequence.index);
            }
            if (plant || (staged && params.dinitial_states.at != nullptr)) {
                // the state is planted, before windows are read, and all have read dout for the
                // states' gradients, before dx replaces it
                __syncthreads();
            }
            const Range first = inner(sequence, seqlen);
            if (Shape::kAlongDim) {
                taps.load(smem.taps, shape.group(0).channel);  // those of all groups
            }
            // staged dx replaces no step that a later group needs
#pragma unroll 1
            for (int index = 0; index < Shape::kGroups; ++index) {
                const Group group = shape.group(index);
                Results dx;
                if (!Shape::kAlongDim) {
                    taps.load(smem.taps, group.channel);
                }
                const int step = place.step + group.step;
                Range range = {0, min(seqlen - step, kSteps)};
                if (group.channel < place.channels && range.end > 0) {
                    if (first.holds(step, step + kSteps) ||
                        inner(sequences.at(step), seqlen).holds(step, step + kSteps)) {
                        differentiate(dx, sums, params, smem, taps, shape, place, group,
                                      sequences);
                    } else {
                        range = sequences.cover().within(step, kSteps);
                        walk(dx, sums, params, smem, taps, shape, place, group, sequences, range);
                    }
                }
                if (!Shape::kAlongDim && params.partial != nullptr) {
                    add_lines(smem, sums, shape, index);
                }
                if (params.dx.at != nullptr) {
                    if (staged) {
                        __syncwarp();  // all lanes have read dout, before dx replaces it
                    }
                    dx.store(params.dx, smem.dout, shape, place, group, range);
                }
            }
            if (staged && params.dx.at != nullptr) {
                Results::store_lines(params.dx, smem.dout, shape, place, sequences.cover());
            }
        }
        if (params.partial != nullptr) {
            if (Shape::kAlongDim) {
                add_warps(smem, sums);
            }
            __syncthreads();  // all sums are added, before other threads read them
            save_sums(params, smem, slot, channel, channels);
        }
    }

    // The steps that the tile alone has the windows of, forwards and back, since these lie in one
    // sequence, or begin or end with the row.
    __device__ __forceinline__ static Range inner(const Sequence& sequence, int seqlen) {
        if (sequence.index < 0) {
            return {0, 0};
        }
        return {sequence.start == 0 ? 0 : sequence.start + kBeside,
                sequence.end == seqlen ? INT_MAX : sequence.end - kBeside};
    }

    // The gradients of such a group.
    __device__ __forceinline__ static void differentiate(Results& results, Sums& sums,
                                                         const BackwardParams& params,
                                                         const Smem& smem, const Taps& taps,
                                                         Shape shape, const Place& place,
                                                         Group group,
                                                         const Sequences& sequences) {
        const int width = params.filter.width;
        float x[TileX::kWindow][kChannels], ds[TileDout::kWindow][kChannels];
        smem.x.read(x, shape, group);
        smem.dout.read(ds, shape, group);
        float dx[kSteps][kChannels] = {};
        // one channel after the other: there are not enough registers for two
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
            if (params.silu) {
#pragma unroll
                for (int i = 0; i < TileDout::kWindow; ++i) {
                    ds[i][c] *= silu_derivative(taps.sum(x, kBeside + i, c, width));
                }
            }
#pragma unroll
            for (int i = 0; i < kSteps; ++i) {
                sums.bias[c] += ds[i][c];
#pragma unroll
                for (int lag = 0; lag < Width; ++lag) {
                    if (Taps::has(lag, width)) {
                        dx[i][c] += taps.of_lag[lag][c] * ds[i + lag][c];
                        sums.of_lag[lag][c] += ds[i][c] * x[kBeside + i - lag][c];
                    }
                }
            }
        }
        const int end = params.packing.seqlen - place.step - group.step;
        if (params.dfinal_states.at != nullptr && end < kSteps + width) {
            add_dfinal(dx, params, place, group, sequences, end);
        }
        results.set(dx);
    }

    // Adds the gradients of the final states to dx of a group where the row ends in it or soon
    // after: `end` steps after its first.
    __device__ __forceinline__ static void add_dfinal(float (&dx)[kSteps][kChannels],
                                                      const BackwardParams& params,
                                                      const Place& place, Group group,
                                                      const Sequences& sequences, int end) {
        const int width = params.filter.width;
        const int sequence = sequences.at(place.step + group.step).index;
#pragma unroll 1
        for (int age = 1; age < width; ++age) {
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
                const int line = group.channel + c;
                const bool there = end >= age && end - age < kSteps && line < place.channels;
                const float dfinal =
                    there ? from_bits<Element>(load_state<Element>(params.dfinal_states, width,
                                                                   sequence, place.channel + line,
                                                                   age))
                          : 0.f;
#pragma unroll
                for (int i = 0; i < kSteps; ++i) {
                    dx[i][c] += i == end - age ? dfinal : 0.f;
                }
            }
        }
    }

    // The gradients of the steps `range` of a group, one sequence after the other.
    __device__ __forceinline__ static void walk(Results& results, Sums& sums,
                                                const BackwardParams& params, Smem& smem,
                                                const Taps& taps, Shape shape, const Place& place,
                                                Group group, const Sequences& sequences,
                                                Range range) {
        const int first = place.step + group.step;
#pragma unroll 1
        for (int from = range.start; from < range.end;) {
            const Sequence sequence = sequences.at(first + from);
            const int to = min(sequence.end - first, range.end);
            walk(results, sums, params, smem, taps, shape, place, group, sequence, from, to);
            from = to;
        }
    }

    // The same step by step, for the steps of a group from `from` to `to`, all of one sequence.
    __device__ __forceinline__ static void walk(Results& results, Sums& sums,
                                                const BackwardParams& params, Smem& smem,
                                                const Taps& taps, Shape shape, const Place& place,
                                                Group group, const Sequence& sequence, int from,
                                                int to) {
        const int width = params.filter.width;
        const int start = sequence.start - place.step;
        const int end = sequence.end - place.step - group.step;
        // the inputs up to the current step, which is the last of them, and their gradients so far
        float window[Width][kChannels] = {}, dx[Width][kChannels] = {};
#pragma unroll 1
        for (int step = from - kBeside; step < to + kBeside; ++step) {
            const int ready = step - kBeside;
            float ds[kChannels] = {}, dfinal[kChannels] = {};
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
#pragma unroll
                for (int i = 0; i < kBeside; ++i) {
                    window[i][c] = window[i + 1][c];
                    dx[i][c] = dx[i + 1][c];
                }
                dx[kBeside][c] = 0.f;
                const int line = group.channel + c, channel = place.channel + line;
                if (line >= place.channels) {
                    continue;
                }
                if (step < end) {
                    window[kBeside][c] =
                        input<Element>(smem.x, shape, group.step + step, line, start,
                                       params.initial_states, width, sequence.index, channel);
                }
                if (from <= step && step < end) {
                    ds[c] = from_bits<Element>(smem.dout.at(shape, group.step + step, line));
                }
                if (from <= ready && end - ready < width) {
                    dfinal[c] = from_bits<Element>(load_state<Element>(
                        params.dfinal_states, width, sequence.index, channel, end - ready));
                }
            }
            const bool own = step < to;
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
                if (params.silu) {
                    ds[c] *= silu_derivative(taps.sum(window, kBeside, c, width));
                }
                sums.bias[c] += own ? ds[c] : 0.f;
#pragma unroll
                for (int lag = 0; lag < Width; ++lag) {
                    if (Taps::has(lag, width)) {
                        dx[kBeside - lag][c] += taps.of_lag[lag][c] * ds[c];
                        sums.of_lag[lag][c] += own ? ds[c] * window[kBeside - lag][c] : 0.f;
                    }
                }
                dfinal[c] += dx[0][c];
            }
            if (from <= ready) {
                results.set(ready, dfinal);
            }
        }
    }

    // The gradients of the initial states of the sequences that begin in this tile: sums over the
    // ds of their first steps. Neighbouring threads take neighbouring steps of the state, then
    // channels.
    __device__ __forceinline__ static void save_dinitial_states(const BackwardParams& params,
                                                                Smem& smem, Shape shape,
                                                                const Place& place,
                                                                const Sequences& sequences) {
        const int width = params.filter.width, ages = width - 1;
        const int next = place.step + shape.steps();
        // those of no steps at the row's end belong to the last tile
        const bool last_tile = next >= place.steps;
        const int last = min(sequences.high, params.packing.sequences) - 1;
#pragma unroll 1
        for (int index = sequences.low + 1; index <= last; ++index) {
            const int start = sequences.boundary(index);
            const int length = max(sequences.boundary(index + 1) - start, 0);
            const int sequence = sequences.first + index;
            if (start < place.step || (start >= next && !last_tile)) {
                continue;  // the next tile's, or the boundaries are out of order
            }
#pragma unroll 1
            for (int i = thread_of_block(); i < place.channels * ages; i += kThreads) {
                const int line = i / ages, age = ages - i % ages;
                const int channel = place.channel + line;
                // in a sequence shorter than the state it is a final state as well
                float sum = from_bits<Element>(load_state<Element>(
                    params.dfinal_states, width, sequence, channel, length + age));
#pragma unroll 1
                for (int since = 0; since < min(length, width - age); ++since) {
                    sum += smem.taps.of_lag[since + age][line] *
                           ds_of(params, smem, shape, start - place.step + since, line, since,
                                 sequence, channel);
                }
                store_state<Element>(params.dinitial_states, width, sequence, channel, age,
                                     to_bits<Element>(sum));
            }
        }
    }

    // ds of a step of the tile, `since` steps after the first of its sequence.
    __device__ __forceinline__ static float ds_of(const BackwardParams& params, Smem& smem,
                                                  Shape shape, int step, int line, int since,
                                                  int sequence, int channel) {
        const float dout = from_bits<Element>(smem.dout.at(shape, step, line));
        if (!params.silu) {
            return dout;
        }
        const int width = params.filter.width;
        float s = smem.taps.bias[line];
#pragma unroll 1
        for (int lag = 0; lag < width; ++lag) {
            s += smem.taps.of_lag[lag][line] *
                 input<Element>(smem.x, shape, step - lag, line, step - since,
                                params.initial_states, width, sequence, channel);
        }
        return dout * silu_derivative(s);
    }

    // Along dim: adds the sums of the warps, one after the other, whose lanes have the same channels.
    __device__ __forceinline__ static void add_warps(Smem& smem, const Sums& sums) {
        const int channel = lane_of_warp() * kChannels;
#pragma unroll 1
        for (int warp = 0; warp < kWarps; ++warp) {
            __syncthreads();  // the warps before have added theirs
            if (warp_of_block() == warp) {
#pragma unroll
                for (int c = 0; c < kChannels; ++c) {
#pragma unroll
                    for (int lag = 0; lag < Width; ++lag) {
                        smem.sums.of_lag[lag][channel + c] += sums.of_lag[lag][c];
                    }
                    smem.sums.bias[channel + c] += sums.bias[c];
                }
            }
        }
    }

    // Along seqlen: where lines end, adds the sums of the lanes that share one. All lines are owned
    // by one warp.
    __device__ __forceinline__ static void add_lines(Smem& smem, Sums& sums, Shape shape,
                                                     int index) {
        const int chunks = 1 << shape.line_chunks;
        if (chunks > 32 && (index + 1) * 32 % chunks != 0) {
            return;  // the line goes on
        }
        const int lanes = min(chunks, 32);
#pragma unroll 1
        for (int distance = 1; distance < lanes; distance *= 2) {
#pragma unroll
            for (int lag = 0; lag < Width; ++lag) {
                sums.of_lag[lag][0] +=
                    __shfl_xor_sync(kAllLanes, sums.of_lag[lag][0], distance);
            }
            sums.bias[0] += __shfl_xor_sync(kAllLanes, sums.bias[0], distance);
        }
        if (lane_of_warp() % lanes == 0) {
            const int line = shape.group(index).channel;
#pragma unroll
            for (int lag = 0; lag < Width; ++lag) {
                smem.sums.of_lag[lag][line] += sums.of_lag[lag][0];
            }
            smem.sums.bias[line] += sums.bias[0];
        }
        sums = {};
    }

    // The block's sums to its slot: those of the lags, then those for dbias.
    __device__ __forceinline__ static void save_sums(const BackwardParams& params, Smem& smem,
                                                     int slot, int channel, int channels) {
        const int width = params.filter.width;
        float* to = params.partial + int64_t{slot} * (width + 1) * params.dim + channel;
#pragma unroll 1
        for (int i = thread_of_block(); i < (width + 1) * Shape::kMaxChannels; i += kThreads) {
            const int line = i % Shape::kMaxChannels, lag = i / Shape::kMaxChannels;
            if (line < channels) {
                to[int64_t{lag} * params.dim + line] =
                    lag < width ? smem.sums.of_lag[lag][line] : smem.sums.bias[line];
            }
        }
    }
};

}  // namespace seqmix::causal_conv1d
