// How the results of a tile leave: as words or chunks where memory is aligned, else by elements,
// along seqlen by way of shared memory.
#pragma once

#include <cstdint>

#include "causal_conv1d/params.h"
#include "causal_conv1d/sequences.cuh"
#include "causal_conv1d/tile.cuh"
#include "common/warp.cuh"

namespace seqmix::causal_conv1d {

// The results of a group, rounded: along dim a word a step, along seqlen a chunk.
template <typename Element, typename Shape>
struct Results {
    static constexpr bool kAlongDim = Shape::kAlongDim;
    static constexpr int kSteps = Shape::kGroupSteps;
    static constexpr int kChannels = Shape::kGroupChannels;
    static constexpr int kWordSteps = kAlongDim ? 1 : 4 / sizeof(Element);
    static constexpr int kWords = kSteps / kWordSteps;

    uint32_t words[kWords] = {};

    __device__ __forceinline__ void set(const float (&numbers)[kSteps][kChannels]) {
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
            float of_word[kWordSteps * kChannels];
#pragma unroll
            for (int i = 0; i < kWordSteps * kChannels; ++i) {
                of_word[i] = numbers[word * kWordSteps + i / kChannels][i % kChannels];
            }
            words[word] = to_word<Element>(of_word);
        }
    }

    // The same of one step, which is not known when compiled.
    __device__ __forceinline__ void set(int step, const float (&numbers)[kChannels]) {
        uint32_t bits, mask = 0xffffffff;
        if constexpr (kWordSteps == 1) {
            bits = to_word<Element>(numbers);
        } else {
            const int shift = 16 * (step % 2);
            bits = static_cast<uint32_t>(to_bits<Element>(numbers[0])) << shift;
            mask = 0xffffu << shift;
        }
#pragma unroll
        for (int word = 0; word < kWords; ++word) {
            const bool there = word == step / kWordSteps;
            words[word] = there ? (words[word] & ~mask) | bits : words[word];
        }
    }

    // Whether `store` needs `store_lines` to follow.
    __device__ __forceinline__ static bool staged(const Signal& signal) {
        return !kAlongDim && !signal.vector;
    }

    // Stores the steps `range` of a group; if staged, all of it to its own place in `tile`, whose old
    // contents nobody may need.
    template <typename Tile>
    __device__ __forceinline__ void store(const Signal& signal, Tile& tile, Shape shape,
                                          const Place& place, Group group, Range range) const {
        const int channels = place.channels - group.channel;
        const bool whole = signal.vector && range.holds(0, kSteps) && channels >= kChannels;
        auto* to = static_cast<Bits<Element>*>(signal.at) + place.row * signal.batch_stride;
        if constexpr (kAlongDim) {
            to += (place.step + group.step) * signal.line_stride + place.channel + group.channel;
            if (whole) {
#pragma unroll
                for (int i = 0; i < kSteps; ++i) {
                    *reinterpret_cast<uint32_t*>(to) = words[i];
                    to += signal.line_stride;
                }
                return;
            }
        } else {
            const uint4 chunk = make_uint4(words[0], words[1], words[2], words[3]);
            if (staged(signal)) {
                *reinterpret_cast<uint4*>(&tile.at(shape, group.step, group.channel)) = chunk;
                return;
            }
            to += (place.channel + group.channel) * signal.line_stride + place.step + group.step;
            if (whole) {
                *reinterpret_cast<uint4*>(to) = chunk;
                return;
            }
        }
        constexpr int kElements = 4 / sizeof(Element);
#pragma unroll
        for (int i = 0; i < kWords * kElements; ++i) {
            // element i of the group, of this step and channel
            const int step = kAlongDim ? i / kElements : i, channel = kAlongDim ? i % kElements : 0;
            if (range.holds(step, step + 1) && channel < channels) {
                to[channel + (kAlongDim ? 0 : step)] =
                    static_cast<Bits<Element>>(words[i / kElements] >> (16 * (i % kElements)));
            }
            if (kAlongDim && channel == kElements - 1) {
                to += signal.line_stride;
            }
        }
    }

    // Stores what this warp has staged: whole lines, which are the warp's own.
    template <typename Tile>
    __device__ __forceinline__ static void store_lines(const Signal& signal, Tile& tile,
                                                       Shape shape, const Place& place,
                                                       Range cover) {
        __syncwarp();  // the lanes have staged their chunks, before other lanes read them
        const int lines = shape.channels() / kWarps;
        const Range range = cover.within(place.step, shape.steps());
#pragma unroll 1
        for (int line = 0; line < lines; ++line) {
            const int channel = warp_of_block() * lines + line;
            auto* to = static_cast<Bits<Element>*>(signal.at) + place.row * signal.batch_stride +
                       (place.channel + channel) * signal.line_stride + place.step;
            if (channel < place.channels) {
#pragma unroll 1
                for (int step = range.start + lane_of_warp(); step < range.end; step += 32) {
                    to[step] = tile.at(shape, step, channel);
                }
            }
        }
    }
};

}  // namespace seqmix::causal_conv1d
