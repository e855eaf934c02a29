// A walk over a segment of a sequence that computes nothing but states; or, from the last step to
// the first, nothing but their gradients.
//
//     S = exp(A dt') S + dt' x B^T            G = exp(A dt') G + dy C^T,  dy = dout silu(z)
//
// The first phase tells what a segment leaves behind of zeros. Where sequences and heads are too few
// to fill the device, the segments of a sequence then run side by side, each from its true start
// state. The second phase keeps the states between chunks for the gradients.
//
// grid    x: blocks of slices, group by group; y: segments; z: sequences
// block   takes kChunk steps at a time, while the next ones are on their way
// warp    owns the state of 16 * Tiles channels of one slice
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/async_copy.cuh"
#include "common/operands.cuh"
#include "common/pointwise.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "ssd/params.h"
#include "ssd/place.cuh"
#include "ssd/slices.cuh"
#include "ssd/state.cuh"
#include "ssd/steps.cuh"

namespace seqmix::ssd {

enum class Direction { Forward, Backward };

template <typename Element_, int Size, int Tiles, Direction Way>
struct Sweep {
    using Element = Element_;
    using State = seqmix::ssd::State<Element, Size, Tiles>;
    using Slices = seqmix::ssd::Slices<State>;

    static constexpr int kThreads = Slices::kThreads;
    static constexpr int kSlices = Slices::kCount;
    static constexpr int kChunk = seqmix::ssd::kChunk<Element>;
    static constexpr int kSlice = seqmix::ssd::kSlice<Element>;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    static constexpr int kStages = 2;
    static constexpr bool kBackward = Way == Direction::Backward;

    using CoefficientTile = Tile<Element, kChunk, Size>;
    using ChannelTile = Tile<Element, kChunk, kSlice>;
    using CoefficientCopy = Copy<kThreads, CoefficientTile>;
    using ChannelCopy = Copy<kThreads, ChannelTile>;

    struct Stage {
        CoefficientTile b;
        ChannelTile x[kSlices];
        Steps<kChunk> steps[kSlices];
    };
    struct Forward {
        Stage stages[kStages];
        float largest[2][Slices::kWarps];  // of the state of each warp, at every other chunk
    };
    struct Backward : Forward {
        ChannelTile gate[kSlices];  // z; a warp reads its own channels only
    };
    using Smem = std::conditional_t<kBackward, Backward, Forward>;

    __device__ __forceinline__ static void run(const SweepParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Place place = place_of_block(layer);
        const bool from_zeros = params.phase == 0;
        // behind the last segment of the walk is none that waits for its state
        if (!place.exists || (from_zeros && (kBackward ? place.first : place.last))) {
            return;
        }
        const int chunks = (place.steps + kChunk - 1) / kChunk;
        // the first step of the n-th chunk of the walk
        const auto step_of = [&](int n) { return (kBackward ? chunks - 1 - n : n) * kChunk; };
        if (chunks > 0) {
            fetch(layer, place, smem.stages[0], step_of(0));
            fetch_gate(layer, place, smem, step_of(0));
            Slices::scan(
                smem.stages[0].steps, layer,
                Slices::inputs(layer, place, step_of(0)),
                place.steps - step_of(0));
        }
        State state;
        state.clear();
        if (!from_zeros) {
            load_start(params, place, state);
            note_largest(smem, state, 0);
        }
        // of all chunks so far, of the slice whose steps this warp scans
        float decay = 1.f;
#pragma unroll 1
        for (int n = 0; n < chunks; ++n) {
            StepInputs inputs = {};
            if (n + 1 < chunks) {
                inputs = Slices::inputs(layer, place, step_of(n + 1));
            }
            wait_copies<0>();
            // all tiles and decays of the chunk, and the magnitudes of the state, before they are
            // read; and all reads of the chunk before it, before the next fetch overwrites it
            __syncthreads();
            if (n + 1 < chunks) {
                Stage& next = smem.stages[(n + 1) % kStages];
                fetch(layer, place, next, step_of(n + 1));
                Slices::scan(next.steps, layer, inputs,
                                               place.steps - step_of(n + 1));
            }
            Stage& stage = smem.stages[n % kStages];
            if (kBackward && layer.z.at != nullptr) {
                gate(stage.x[Slices::of_warp()], smem);
                __syncwarp();  // the lanes have read z and written dy, before z is overwritten
                if (n + 1 < chunks) {
                    fetch_gate(layer, place, smem, step_of(n + 1));
                }
            }
            if (!from_zeros) {
                keep(params, place, smem, state, step_of(n), n);
            }
            const Steps<kChunk>& steps = stage.steps[Slices::of_warp()];
            if constexpr (kBackward) {
                state.advance(stage.x[Slices::of_warp()], Slices::warp_channel(), stage.b,
                              steps.inflow, steps.inflow[kChunk - 1]);
            } else {
                state.advance(stage.x[Slices::of_warp()], Slices::warp_channel(), stage.b,
                              steps.weight, steps.decay);
                if (kNarrow<Element> && steps.unit != 1.f) {
                    state.multiply_by(steps.unit);
                }
            }
            if (from_zeros) {
                decay *= steps.inflow[kChunk - 1];
            } else {
                note_largest(smem, state, n + 1);
            }
        }
        const Slice slice = Slices::channels_of_warp(layer);
        if (from_zeros) {
            const int64_t head = place.slot * layer.heads + slice.head;
            state.store(params.segments + (head * layer.headdim + slice.channel) * layer.dstate,
                        slice.channels, layer.dstate, layer.dstate);
            // by the warp and lane of the head's first channel
            if (slice.channel == 0 && slice.channels > 0 && lane_of_warp() == 0) {
                params.decays[head] = decay;
            }
        } else if ((kBackward ? place.first : place.last) && params.after.at != nullptr) {
            state.store(state_of(params.after, slice), slice.channels, layer.dstate,
                        params.after.channel_stride);
        }
    }

    // The state before the segment: as the segments before it left it, or that before the walk.
    __device__ __forceinline__ static void load_start(const SweepParams& params, const Place& place,
                                                      State& state) {
        const Layer& layer = params.layer;
        const Slice slice = Slices::channels_of_warp(layer);
        if (params.segments != nullptr) {
            const int64_t head = place.slot * layer.heads + slice.head;
            state.load(params.segments + (head * layer.headdim + slice.channel) * layer.dstate,
                       slice.channels, layer.dstate, layer.dstate);
        } else if (params.before.at != nullptr) {
            state.load(state_of(params.before, slice), slice.channels, layer.dstate,
                       params.before.channel_stride);
        }
    }

    __device__ __forceinline__ static void note_largest(Smem& smem, const State& state, int n) {
        if constexpr (kNarrow<Element>) {
            const float largest = state.largest();
            if (lane_of_warp() == 0) {
                smem.largest[n % 2][warp_of_block()] = largest;
            }
        }
    }

    // Stores the state before the n-th chunk of the walk, which begins `step` steps into the segment;
    // and the product of both states between two chunks, where the other one is known.
    __device__ __forceinline__ static void keep(const SweepParams& params, const Place& place,
                                                const Smem& smem, const State& state, int step,
                                                int n) {
        const Layer& layer = params.layer;
        const Slice slice = Slices::channels_of_warp(layer);
        if (slice.channels == 0) {
            return;
        }
        float unit = 1.f;
        if constexpr (kNarrow<Element>) {
            float largest = 0.f;
            const int first = Slices::of_warp() * Slices::kWarpsOfSlice;
#pragma unroll
            for (int i = 0; i < Slices::kWarpsOfSlice; ++i) {
                largest = fmaxf(largest, smem.largest[n % 2][first + i]);
            }
            unit = fitting(largest);
        }
        const int64_t head = chunk_slot(layer, place, kChunk, step) * layer.heads + slice.head;
        const int slices = (layer.headdim + kSlice - 1) / kSlice;
        const int64_t index = head * slices + slice.channel / kSlice;
        const int64_t offset = (head * layer.headdim + slice.channel) * layer.dstate;
        state.store_operands(static_cast<Element*>(params.chunks) + offset, slice.channels,
                             layer.dstate, unit);
        if (slice.channel % kSlice == 0 && lane_of_warp() == 0) {
            params.units[index] = unit;
        }
        if constexpr (kBackward) {
            const auto* met = static_cast<const Element*>(params.met) + offset;
            const float dot = warp_sum(state.dot(met, slice.channels, layer.dstate)) *
                              params.met_units[index];
            if (lane_of_warp() < Tiles) {  // a number for each 16 channels, whatever the warps
                params.dots[4 * index + slice.channel % kSlice / 16 + lane_of_warp()] =
                    lane_of_warp() == 0 ? dot : 0.f;
            }
        }
    }

    // Starts the copies of b and x of the chunk that begins `step` steps into the segment.
    __device__ __forceinline__ static void fetch(const Layer& layer, const Place& place,
                                                 Stage& stage, int step) {
        const int rows = place.steps - step;
        const Element* b =
            row_of<const Element>(layer.b, place.start + step, Slices::group(layer));
        CoefficientCopy::start(stage.b, CoefficientCopy::source(b, layer.b.step_stride),
                               layer.b.step_stride, rows, layer.dstate / kElements);
#pragma unroll
        for (int i = 0; i < kSlices; ++i) {
            const Slice slice = Slices::slice(layer, i);
            const Element* x =
                row_of<const Element>(layer.x, place.start + step, slice.head) + slice.channel;
            ChannelCopy::start(stage.x[i], ChannelCopy::source(x, layer.x.step_stride),
                               layer.x.step_stride, rows, slice.channels / kElements);
        }
        commit_copies();
    }

    // Starts the copy of the warp's channels of z.
    __device__ __forceinline__ static void fetch_gate(const Layer& layer, const Place& place,
                                                      Smem& smem, int step) {
        if constexpr (kBackward) {
            if (layer.z.at == nullptr) {
                return;
            }
            const Slice slice = Slices::slice(layer, Slices::of_warp());
            const Element* from =
                row_of<const Element>(layer.z, place.start + step, slice.head) + slice.channel;
            Slices::template for_each_chunk<kChunk>([&](int row, int chunk) {
                const bool valid = step + row < place.steps && kElements * chunk < slice.channels;
                copy16_async(smem.gate[Slices::of_warp()].address(row, chunk),
                             from + row * layer.z.step_stride + kElements * chunk, valid);
            });
            commit_copies();
        }
    }

    // dout becomes dy = dout silu(z), in the warp's channels.
    __device__ __forceinline__ static void gate(ChannelTile& dout, const Smem& smem) {
        if constexpr (kBackward) {
            auto* bytes = reinterpret_cast<unsigned char*>(dout.elements);
            const auto* gate_bytes =
                reinterpret_cast<const unsigned char*>(smem.gate[Slices::of_warp()].elements);
            Slices::template for_each_chunk<kChunk>([&](int row, int chunk) {
                const int offset = ChannelTile::offset(row, chunk);
                auto pairs = Pairs<Element>::load(bytes + offset);
                const auto z = Pairs<Element>::load(gate_bytes + offset);
#pragma unroll
                for (int i = 0; i < Pairs<Element>::kCount; ++i) {
                    const float2 left = part<Element>(pairs.values[i]);
                    const float2 right = part<Element>(z.values[i]);
                    pairs.values[i] =
                        join<Element>(left.x * silu(right.x), left.y * silu(right.y));
                }
                pairs.store(bytes + offset);
            });
        }
    }
};

}  // namespace seqmix::ssd
