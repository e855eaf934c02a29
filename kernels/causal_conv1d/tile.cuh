// Tile: the steps and channels of a block in shared memory, with the steps next to them, and who of
// the block's threads works on which of them.
//
// A tile is a number of lines as the tensor has them in memory: along dim a line is one step of 128
// bytes of channels; along seqlen it is one channel, and how long the lines are and how many is up to
// the launch. A thread works on groups of a few neighbours:
//
//   along dim      4 bytes of channels, 8 steps; the lanes of a warp share its steps
//   along seqlen   1 channel, 16 bytes of steps; a warp has whole lines
#pragma once

#include <cstdint>
#include <type_traits>

#include "causal_conv1d/params.h"
#include "common/async_copy.cuh"
#include "common/numeric.cuh"
#include "common/warp.cuh"

namespace seqmix::causal_conv1d {

// The axis that lies contiguously in memory.
enum class Axis { Dim, Seqlen };

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kChunkBytes = 16;

// What holds the bits of an element.
template <typename Element>
using Bits = std::conditional_t<sizeof(Element) == 2, uint16_t, uint32_t>;

// The numbers of a word of 4 bytes: two of 16 bits or one of 32.
template <typename Element>
__device__ __forceinline__ void from_word(float* numbers, uint32_t word) {
    if constexpr (sizeof(Element) == 2) {
        unpack<Element>(numbers[0], numbers[1], word);
    } else {
        numbers[0] = __uint_as_float(word);
    }
}

template <typename Element>
__device__ __forceinline__ uint32_t to_word(const float* numbers) {
    if constexpr (sizeof(Element) == 2) {
        return pack<Element>(numbers[0], numbers[1]);
    } else {
        return __float_as_uint(numbers[0]);
    }
}

template <typename Element>
__device__ __forceinline__ Bits<Element> to_bits(float number) {
    const float pair[2] = {number, 0.f};
    return static_cast<Bits<Element>>(to_word<Element>(pair));
}

template <typename Element>
__device__ __forceinline__ float from_bits(Bits<Element> bits) {
    float numbers[2];
    from_word<Element>(numbers, bits);
    return numbers[0];
}

// The first step, channel and row of a block's tile, and how much of the tensor follows.
struct Place {
    int row;
    int step;
    int channel;
    int steps;     // of the row
    int channels;  // of the tile, in the tensor
};

// A thread's share: the first of its steps and channels in the tile.
struct Group {
    int step;
    int channel;
};

// How a tile of `Chunks` times 16 bytes is divided, whatever it holds.
template <typename Element, Axis Contiguous, int Chunks>
struct Shape {
    static constexpr bool kAlongDim = Contiguous == Axis::Dim;
    static constexpr int kChunk = kChunkBytes / sizeof(Element);
    static constexpr int kChunks = Chunks;  // without those of the steps next to the tile

    static constexpr int kGroupSteps = kAlongDim ? 8 : kChunk;
    static constexpr int kGroupChannels = kAlongDim ? 4 / sizeof(Element) : 1;
    static constexpr int kGroups = Chunks / (kAlongDim ? 512 : 256);  // of a thread

    static constexpr int kDimChunks = 8;  // of a line along dim
    static constexpr int kDimSteps = kChunks / kDimChunks;
    static constexpr int kSeqlenChunksMin = 8;  // of a line along seqlen: eight lanes read one line
    static constexpr int kMaxChannels = kAlongDim ? kDimChunks * kChunk : kChunks / kSeqlenChunksMin;

    static_assert(kAlongDim || kGroups * kThreads == kChunks, "a group is a chunk");
    static_assert(!kAlongDim || kGroups * kGroupSteps * kWarps == kDimSteps, "warps share the steps");

    // log2 of the chunks of a line along seqlen.
    int line_chunks;

    __device__ __forceinline__ int channels() const {
        return kAlongDim ? kMaxChannels : kChunks >> line_chunks;
    }
    __device__ __forceinline__ int steps() const {
        return kAlongDim ? kDimSteps : kChunk << line_chunks;
    }

    __device__ __forceinline__ Group group(int index) const {
        if constexpr (kAlongDim) {
            return {(warp_of_block() * kGroups + index) * kGroupSteps,
                    lane_of_warp() * kGroupChannels};
        } else {
            const int chunk = (warp_of_block() * kGroups + index) * 32 + lane_of_warp();
            return {(chunk & ((1 << line_chunks) - 1)) * kChunk, chunk >> line_chunks};
        }
    }

    // The tile `tile` of all rows, and `channel_tile` of the channels.
    __device__ __forceinline__ Place place(uint32_t tile, uint32_t channel_tile,
                                           uint32_t step_tiles, int seqlen, int dim) const {
        const int row = static_cast<int>(tile / step_tiles);
        const int step = static_cast<int>(tile % step_tiles) * steps();
        const int channel = static_cast<int>(channel_tile) * channels();
        return {row, step, channel, seqlen, min(dim - channel, channels())};
    }
};

// The elements of a shape, of `Before` steps before it and of `After` behind it.
template <typename Element, Axis Contiguous, int Chunks, int Before, int After>
struct alignas(128) Tile {
    using Shape = causal_conv1d::Shape<Element, Contiguous, Chunks>;
    static constexpr bool kAlongDim = Shape::kAlongDim;
    static constexpr int kChunk = Shape::kChunk;
    static constexpr int kGroupSteps = Shape::kGroupSteps;
    static constexpr int kGroupChannels = Shape::kGroupChannels;
    static constexpr int kWindow = Before + kGroupSteps + After;

    // Along seqlen: chunks for the steps next to those of the tile.
    static constexpr int kChunksBefore = (Before + kChunk - 1) / kChunk;
    static constexpr int kChunksAfter = (After + kChunk - 1) / kChunk;
    static constexpr int kChunksBeside = kChunksBefore + kChunksAfter;
    // As many more chunks are between lines that copies of one chunk, or two, from eight lines
    // fall on different banks.
    static constexpr int kSide = kChunksBefore > kChunksAfter ? kChunksBefore : kChunksAfter;
    static constexpr int kPadded = kSide == 0 ? 0 : kSide * (kChunksBeside / kSide | 1);

    static constexpr int kBytes =
        kChunkBytes *
        (kAlongDim ? (Before + Shape::kDimSteps + After) * Shape::kDimChunks
                   : Shape::kChunks + Shape::kChunks / Shape::kSeqlenChunksMin * kPadded);

    unsigned char bytes[kBytes];

    // Bytes from the tile's start to an element; steps may be those next to the tile.
    __device__ __forceinline__ static int offset(Shape shape, int step, int channel) {
        if constexpr (kAlongDim) {
            return (step + Before) * Shape::kDimChunks * kChunkBytes +
                   channel * static_cast<int>(sizeof(Element));
        } else {
            const int line = channel * ((1 << shape.line_chunks) + kPadded);
            return kChunkBytes * (line + kChunksBefore) + step * static_cast<int>(sizeof(Element));
        }
    }

    __device__ __forceinline__ Bits<Element>& at(Shape shape, int step, int channel) {
        return *reinterpret_cast<Bits<Element>*>(bytes + offset(shape, step, channel));
    }

    // Copies the tile at `place`, with `before` of the steps before it and `after` behind it; all
    // else of the tile becomes 0. Copies of 16 bytes are only started.
    __device__ __forceinline__ void fetch(Shape shape, const Signal& signal, const Place& place,
                                          int before, int after) {
        const Element* from = static_cast<const Element*>(signal.at) +
                              place.row * signal.batch_stride +
                              (kAlongDim ? place.step * signal.line_stride + place.channel
                                         : place.channel * signal.line_stride + place.step);
        // steps to read, counted from the tile's first
        const int first = max(-before, -place.step);
        const int end = min(shape.steps() + after, place.steps - place.step);
        if (!signal.vector) {
            fetch_elements(shape, from, signal.line_stride, place.channels, first, end);
        } else if constexpr (kAlongDim) {
            constexpr int kStep = kThreads / Shape::kDimChunks;
            const int channel = thread_of_block() % Shape::kDimChunks * kChunk;
            const int channels = min(max(place.channels - channel, 0), kChunk);
            int step = thread_of_block() / Shape::kDimChunks - Before;
            uint32_t to = shared_address(bytes) + offset(shape, step, channel);
            from += step * signal.line_stride + channel;
#pragma unroll 1
            for (; step < Shape::kDimSteps + After; step += kStep) {
                const bool valid = first <= step && step < end;
                copy16_async(to, from, valid ? channels * static_cast<int>(sizeof(Element)) : 0);
                to += kStep * Shape::kDimChunks * kChunkBytes;
                from += kStep * signal.line_stride;
            }
        } else {
            const auto copy_chunk = [&](int step, int channel) {
                const bool valid = step > first - kChunk && place.step + step >= 0 &&
                                   channel < place.channels;
                const int steps = valid ? min(max(end - step, 0), kChunk) : 0;
                copy16_async(shared_address(bytes) + offset(shape, step, channel),
                             from + channel * signal.line_stride + step,
                             steps * static_cast<int>(sizeof(Element)));
            };
#pragma unroll
            for (int i = 0; i < Shape::kGroups; ++i) {
                const Group group = shape.group(i);
                copy_chunk(group.step, group.channel);
            }
            if constexpr (kChunksBefore > 0) {
                copy_beside<kChunksBefore>(shape, -kChunksBefore * kChunk, copy_chunk);
            }
            if constexpr (kChunksAfter > 0) {
                copy_beside<kChunksAfter>(shape, shape.steps(), copy_chunk);
            }
        }
    }

    // The numbers of a group, of the steps before it and of those behind it.
    __device__ __forceinline__ void read(float (&numbers)[kWindow][kGroupChannels], Shape shape,
                                         Group group) const {
        const unsigned char* from = bytes + offset(shape, group.step, group.channel);
        if constexpr (kAlongDim) {
#pragma unroll
            for (int i = 0; i < kWindow; ++i) {
                const int step = i - Before;
                from_word<Element>(numbers[i], *reinterpret_cast<const uint32_t*>(
                                                   from + step * Shape::kDimChunks * kChunkBytes));
            }
        } else {
            constexpr int kWord = 4 / sizeof(Element);
#pragma unroll
            for (int chunk = -kChunksBefore; chunk <= kChunksAfter; ++chunk) {
                const uint4 four = *reinterpret_cast<const uint4*>(from + chunk * kChunkBytes);
                const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int word = 0; word < 4; ++word) {
                    float of_word[kWord];
                    from_word<Element>(of_word, words[word]);
#pragma unroll
                    for (int i = 0; i < kWord; ++i) {
                        const int at = Before + chunk * kChunk + word * kWord + i;
                        if (0 <= at && at < kWindow) {
                            numbers[at][0] = of_word[i];
                        }
                    }
                }
            }
        }
    }

    // The `Count` chunks from `step` on of each line.
    template <int Count, typename CopyChunk>
    __device__ __forceinline__ static void copy_beside(Shape shape, int step,
                                                       const CopyChunk& copy_chunk) {
#pragma unroll 1
        for (int i = thread_of_block(); i < Count * shape.channels(); i += kThreads) {
            copy_chunk(step + i % Count * kChunk, i / Count);
        }
    }

    // The same through registers, where chunks are not aligned. A warp takes whole lines.
    __device__ __forceinline__ void fetch_elements(Shape shape, const Element* from,
                                                   int64_t line_stride, int channels, int first,
                                                   int end) {
        const auto* bits = reinterpret_cast<const Bits<Element>*>(from);
        const int lines = kAlongDim ? Before + Shape::kDimSteps + After : shape.channels();
        const int width = kAlongDim ? Shape::kMaxChannels
                                    : shape.steps() + kChunksBeside * kChunk;
#pragma unroll 1
        for (int line = warp_of_block(); line < lines; line += kWarps) {
#pragma unroll 1
            for (int i = lane_of_warp(); i < width; i += 32) {
                const int step = kAlongDim ? line - Before : i - kChunksBefore * kChunk;
                const int channel = kAlongDim ? i : line;
                const bool valid = first <= step && step < end && channel < channels;
                const int64_t offset = kAlongDim ? step * line_stride + channel
                                                 : channel * line_stride + step;
                at(shape, step, channel) = valid ? bits[offset] : 0;
            }
        }
    }
};

}  // namespace seqmix::causal_conv1d
