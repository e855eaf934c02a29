// Elements of u and what is like it: how a block copies a tile of each, and where it keeps their
// numbers in shared memory.
//
// A tile is Channels rows of RowBytes of steps. Each thread carries one chunk of 16 bytes of every
// tensor, the same elements of each: along the steps of one channel, or along the channels of one
// step, whichever lie contiguously. It copies it from global memory to a slot of its own, so that no
// barrier is needed, and later stores its elements of the results. In between, floats lie in a
// `Floats` by rows of channels and in the order of the scan, for the threads that scan.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "selective_scan/chunk.cuh"
#include "selective_scan/params.h"
#include "selective_scan/place.cuh"

namespace seqmix::selective_scan {

template <int Channels, int RowBytes, int Threads>
struct ElementTile {
    static constexpr int kChunksOfRow = RowBytes / kChunkBytes;
    static constexpr int kChunkBits = kChunksOfRow == 4 ? 2 : kChunksOfRow - 1;
    static_assert(kChunksOfRow == 1 << kChunkBits, "1, 2 or 4 chunks");
    static constexpr int kChunks = Channels * kChunksOfRow;
    static constexpr int kMaxSteps = RowBytes / 2;
    // Rows of an odd number of 16 bytes: eight of them begin on different banks.
    static constexpr int kPitch = kMaxSteps + 4;

    static_assert(Channels % 8 == 0, "whole eights of rows");
    static_assert(kChunks <= Threads, "a thread carries one chunk");
    static_assert(Channels % (32 / kChunksOfRow) == 0 || kChunks <= 32,
                  "a warp carries whole chunks of rows");

    // Rows of floats. Between each eight of them and the next lies up to half of the banks, so that
    // chunks along channels have no bank conflicts either.
    struct alignas(16) Floats {
        float at[Channels * kPitch + Channels / 8 * 16];

        __device__ __forceinline__ float* row(int channel, int steps) {
            return at + row_of(channel, steps);
        }
    };

    // Where the row of a channel begins.
    __device__ __forceinline__ static int row_of(int channel, int steps) {
        return channel * kPitch + channel / 8 * min(steps, 16);
    }

    using Slots = uint4[kChunks];

    // The elements that this thread carries.
    struct Chunk {
        const Scan& scan;
        int element_bits;  // there are 2^this elements
        int channel;       // the first, in the block
        int step;          // the first, in the tile
        int place;         // where the first, in the order of the scan, lies among the floats
        bool carries;      // false: the thread has none

        __device__ __forceinline__ explicit Chunk(const Scan& of)
            : scan(of),
              element_bits(of.u.dtype == kF32 ? 2 : 3),
              carries(thread_of_block() < kChunks) {
            const int lane = lane_of_warp();
            const int warp = warp_of_block();
            if (scan.along_channels) {
                // 16 steps of two neighbouring chunks: whole sectors, and each bank once
                const int bits = element_bits + kChunkBits;  // there are 2^this steps
                const int lane_bits = min(bits, 4);
                const int part_bits = bits - lane_bits;
                const int part = warp & ((1 << part_bits) - 1);
                step = (lane & ((1 << lane_bits) - 1)) + (part << lane_bits);
                channel = ((warp >> part_bits) << (5 - lane_bits)) + (lane >> lane_bits);
                channel <<= element_bits;
            } else {
                constexpr int kRows = 32 / kChunksOfRow;
                step = (lane / kRows) << element_bits;
                channel = kRows * warp + lane % kRows;
            }
            place = row_of(channel, steps()) + position();
        }

        __device__ __forceinline__ int dtype() const { return scan.u.dtype; }
        __device__ __forceinline__ int elements() const { return 1 << element_bits; }
        __device__ __forceinline__ int bytes() const { return kChunkBytes >> element_bits; }

        // Of a tile.
        __device__ __forceinline__ int steps() const { return kChunksOfRow << element_bits; }

        // Element i is one of the channel `channel + i` at the tile's step `step`, or the other way
        // round. Those of the block and of steps from `start` to `end` are `first` to `last`.
        struct Range {
            int first;
            int last;
        };
        __device__ __forceinline__ Range range(int tile, int start, int end, int channels) const {
            const int at = tile * steps() + step;
            if (!carries) {
                return {0, 0};
            }
            if (scan.along_channels) {
                return {0, at >= start && at < end ? min(channels - channel, elements()) : 0};
            }
            const bool valid = channel < channels;
            return {max(start - at, 0), valid ? min(end - at, elements()) : 0};
        }

        // Where the chunk lies in a tensor, and the elements that follow it.
        __device__ __forceinline__ int64_t offset(const Elements& tensor, const Place& place,
                                                  int tile) const {
            return place.batch * tensor.batch_stride +
                   (int64_t{place.channel} + channel) * tensor.channel_stride +
                   (int64_t{tile} * steps() + step) * tensor.step_stride;
        }
        __device__ __forceinline__ int64_t stride(const Elements& tensor) const {
            return scan.along_channels ? tensor.channel_stride : tensor.step_stride;
        }

        // The chunk of a tile in a tensor.
        __device__ __forceinline__ unsigned char* in(const Elements& tensor, const Place& place,
                                                     int tile) const {
            return static_cast<unsigned char*>(tensor.at) + offset(tensor, place, tile) * bytes();
        }

        // Bytes from there to the chunk of the scan's next tile.
        __device__ __forceinline__ int64_t pace(const Elements& tensor) const {
            const int64_t tile = tensor.step_stride * RowBytes;  // bytes() steps()
            return scan.reverse ? -tile : tile;
        }

        // Copies `count` elements from this address to the chunk's slot.
        __device__ __forceinline__ void start(Slots& slots, const Elements& tensor,
                                              const unsigned char* from, int count) const {
            start_chunk(slots[thread_of_block()], from, count, stride(tensor), tensor.vector,
                        bytes());
        }

        // Copies the chunk of a tile to its slot, as much of it as the tensor has.
        __device__ __forceinline__ void start(Slots& slots, const Elements& tensor,
                                              const Place& place, int tile) const {
            if (carries) {
                const Range valid = range(tile, 0, scan.seqlen, place.channels);
                start(slots, tensor, in(tensor, place, tile), valid.last);
            }
        }

        // The chunk's floats in the order of the scan; only if the thread carries one.
        __device__ __forceinline__ void load(float (&x)[kMaxElements], const Slots& slots) const {
            const uint4 chunk = slots[thread_of_block()];
            widen(x, turned() ? reversed(chunk, bytes()) : chunk, dtype());
        }

        // Stores the chunk's floats of this range at this address.
        __device__ __forceinline__ void store(const Elements& tensor, unsigned char* to,
                                              const float (&x)[kMaxElements], Range range) const {
            if (range.first < range.last) {
                const uint4 chunk = narrow(x, dtype());
                store_chunk(to, turned() ? reversed(chunk, bytes()) : chunk, range.first, range.last,
                            stride(tensor), tensor.vector, bytes());
            }
        }
        __device__ __forceinline__ void store(const Elements& tensor, const float (&x)[kMaxElements],
                                              Range range, const Place& place, int tile) const {
            store(tensor, in(tensor, place, tile), x, range);
        }

        // Whether the order of the scan is not that of the elements.
        __device__ __forceinline__ bool turned() const { return scan.reverse && !scan.along_channels; }

        // Whether element i in the order of the scan is one of a range.
        __device__ __forceinline__ bool within(Range range, int i) const {
            const int at = turned() ? elements() - 1 - i : i;
            return at >= range.first && at < range.last;
        }

        // The channel in the block of element i.
        __device__ __forceinline__ int channel_of(int i) const {
            return scan.along_channels ? channel + i : channel;
        }

        // Reads each element's number, of one for each channel of the block.
        __device__ __forceinline__ void numbers_of(float (&x)[kMaxElements],
                                                   const float* of_channels) const {
            if (scan.along_channels) {
                get_chunk(x, of_channels + channel);
            } else {
                const float one = of_channels[channel];
#pragma unroll
                for (int i = 0; i < kMaxElements; ++i) {
                    x[i] = one;
                }
            }
        }

        // The first element's place in a row, in the order of the scan.
        __device__ __forceinline__ int position() const {
            if (!scan.reverse) {
                return step;
            }
            return scan.along_channels ? steps() - 1 - step : steps() - elements() - step;
        }

        // Writes the chunk's floats to the rows of their channels, which are of one eight.
        __device__ __forceinline__ void put(Floats& floats, const float (&x)[kMaxElements]) const {
            if (scan.along_channels) {
                float* to = floats.at + place;
#pragma unroll
                for (int i = 0; i < kMaxElements; ++i) {
                    if (i < elements()) {
                        to[i * kPitch] = x[i];
                    }
                }
            } else {
                // counted in fours: the compiler would join x[0] with that above, and split the four
                auto* to = reinterpret_cast<float4*>(floats.at) + place / 4;
                to[0] = make_float4(x[0], x[1], x[2], x[3]);
                if (elements() == kMaxElements) {
                    to[1] = make_float4(x[4], x[5], x[6], x[7]);
                }
            }
        }

        // Reads them.
        __device__ __forceinline__ void get(float (&x)[kMaxElements], Floats& floats) const {
            const float* from = floats.at + place;
            if (scan.along_channels) {
#pragma unroll
                for (int i = 0; i < kMaxElements; ++i) {
                    x[i] = i < elements() ? from[i * kPitch] : 0.f;
                }
            } else {
                get_chunk(x, from);
            }
        }

        // Reads as many floats as the chunk has elements, in pieces of 16 bytes.
        __device__ __forceinline__ void get_chunk(float (&x)[kMaxElements],
                                                  const float* from) const {
            const float4 low = *reinterpret_cast<const float4*>(from);
            const float4 high = elements() == kMaxElements
                                    ? *reinterpret_cast<const float4*>(from + 4)
                                    : make_float4(0.f, 0.f, 0.f, 0.f);
            x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
            x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
        }
    };
};

}  // namespace seqmix::selective_scan
