// Which steps of which head a block has, and how it moves rows of a tile of steps: each thread has four
// neighbouring channels of one step, a piece.
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/vector.cuh"
#include "common/warp.cuh"
#include "rwkv7/params.h"

namespace seqmix::rwkv7 {

// Channels of a piece.
constexpr int kPiece = 4;

// Values of cu_seqlens come from the device's memory, where nobody has checked them: they are clamped to
// the tensor's steps.
struct Place {
    const Layer& layer;
    int sequence;
    int head;
    int slice;  // of the head's values
    int batch;
    int start;  // steps of the sequence
    int end;

    __device__ __forceinline__ explicit Place(const Layer& layer) : layer(layer) {
        const int block = static_cast<int>(blockIdx.x);
        slice = block % layer.slices;
        head = block / layer.slices % layer.heads;
        sequence = block / layer.slices / layer.heads;
        if (layer.cu_seqlens == nullptr) {
            batch = sequence;
            start = 0;
            end = layer.seqlen;
        } else {
            batch = 0;
            start = min(max(layer.cu_seqlens[sequence], 0), layer.seqlen);
            end = min(max(layer.cu_seqlens[sequence + 1], start), layer.seqlen);
        }
    }

    // Tiles of the sequence, of which the last one may have fewer steps.
    __device__ __forceinline__ int tiles() const { return (end - start + kSteps - 1) / kSteps; }
    __device__ __forceinline__ int first_step(int tile) const { return start + tile * kSteps; }
    __device__ __forceinline__ int steps_of(int tile) const {
        return min(end - first_step(tile), kSteps);
    }

    // Where the sequence's spans begin among those of all. Sequences come in the order of their first steps,
    // so that each has a place more than spans that end in it.
    __device__ __forceinline__ int64_t first_span() const {
        constexpr int kSpan = kSpanTiles * kSteps;
        return int64_t{batch} * (layer.seqlen / kSpan) + start / kSpan + sequence;
    }
};

// A piece as it lies in memory: two registers of 16-bit elements, or four floats. Zeros are 0 in any type.
using Piece = uint4;

// The thread's piece in a tile of rows of `Width` channels. Only the first 2 * Width threads have one.
template <int Width>
struct Spot {
    int step;  // of the tile
    int channel;

    __device__ __forceinline__ Spot()
        : step(thread_of_block() / (Width / kPiece)),
          channel(thread_of_block() % (Width / kPiece) * kPiece) {}

    __device__ __forceinline__ bool exists() const { return step < kSteps; }

    // In a tile in shared memory.
    __device__ __forceinline__ void put(float (&tile)[kSteps][Width], const float4& x) const {
        store_shared4(&tile[step][channel], x);
    }
    __device__ __forceinline__ float4 get(const float (&tile)[kSteps][Width]) const {
        return load_shared4(&tile[step][channel]);
    }
};

// Element `index` of an array, as it lies there.
__device__ __forceinline__ uint32_t element_of(const void* at, int64_t index, int dtype) {
    return dtype == kF32 ? static_cast<const uint32_t*>(at)[index]
                         : static_cast<const uint16_t*>(at)[index];
}

// One head's rows in a tensor, of which the block has those of one sequence.
struct Head {
    void* at;
    int64_t first;  // the element where the head begins at step 0
    int64_t step_stride;
    int dtype;
    bool ragged;
    int channels;  // that there are

    __device__ __forceinline__ Head(const Rows& rows, const Place& place, int channels, int dtype)
        : at(rows.at),
          first(place.batch * rows.batch_stride + place.head * rows.head_stride),
          step_stride(rows.step_stride),
          dtype(dtype),
          ragged(place.layer.ragged != 0),
          channels(channels) {}

    // Starts to read a piece. Channels that do not exist are zeros.
    __device__ __forceinline__ Piece fetch(int step, int channel) const {
        Piece piece = make_uint4(0, 0, 0, 0);
        const int64_t index = first + step * step_stride + channel;
        if (channel >= channels) {
            return piece;
        }
        if (ragged) {
            uint32_t bits[kPiece];
#pragma unroll
            for (int i = 0; i < kPiece; ++i) {
                bits[i] = channel + i < channels ? element_of(at, index + i, dtype) : 0;
            }
            return dtype == kF32 ? make_uint4(bits[0], bits[1], bits[2], bits[3])
                                 : make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, 0, 0);
        }
        if (dtype == kF32) {
            return load_global16(static_cast<const float*>(at) + index);
        }
        const uint2 four = load_global8(static_cast<const uint16_t*>(at) + index);
        piece.x = four.x;
        piece.y = four.y;
        return piece;
    }

    // Rounds and writes those channels of a piece that exist.
    __device__ __forceinline__ void store(int step, int channel, const float4& x) const {
        if (channel >= channels) {
            return;
        }
        const int64_t index = first + step * step_stride + channel;
        const Piece piece = narrow(x);
        if (ragged) {
            const uint32_t words[kPiece] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
            for (int i = 0; i < kPiece; ++i) {
                if (channel + i < channels) {
                    if (dtype == kF32) {
                        static_cast<uint32_t*>(at)[index + i] = words[i];
                    } else {
                        static_cast<uint16_t*>(at)[index + i] =
                            static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
                    }
                }
            }
        } else if (dtype == kF32) {
            store_global16(static_cast<float*>(at) + index, piece);
        } else {
            store_global8(static_cast<uint16_t*>(at) + index, make_uint2(piece.x, piece.y));
        }
    }

    // The numbers of a piece.
    __device__ __forceinline__ float4 widen(const Piece& piece) const {
        if (dtype == kF32) {
            return floats_of(piece);
        }
        float4 x;
        if (dtype == kF16) {
            unpack<__half>(x.x, x.y, piece.x);
            unpack<__half>(x.z, x.w, piece.y);
        } else {
            unpack<__nv_bfloat16>(x.x, x.y, piece.x);
            unpack<__nv_bfloat16>(x.z, x.w, piece.y);
        }
        return x;
    }

    __device__ __forceinline__ Piece narrow(const float4& x) const {
        if (dtype == kF32) {
            return bits_of(x);
        }
        return dtype == kF16
                   ? make_uint4(pack<__half>(x.x, x.y), pack<__half>(x.z, x.w), 0, 0)
                   : make_uint4(pack<__nv_bfloat16>(x.x, x.y), pack<__nv_bfloat16>(x.z, x.w), 0, 0);
    }
};

// The same where the thread has one piece of each tile, at the same place in all of them.
template <int Width>
struct Stream {
    Head head;
    Piece piece;

    __device__ __forceinline__ Stream(const Rows& rows, const Place& place, int channels, int dtype)
        : head(rows, place, channels, dtype), piece(make_uint4(0, 0, 0, 0)) {}

    // Starts to read the thread's piece of a tile; of steps that do not exist it is zeros.
    __device__ __forceinline__ void fetch(const Place& place, int tile, int first_channel = 0) {
        const Spot<Width> spot;
        piece = make_uint4(0, 0, 0, 0);
        if (spot.exists() && spot.step < place.steps_of(tile)) {
            piece = head.fetch(place.first_step(tile) + spot.step, first_channel + spot.channel);
        }
    }

    __device__ __forceinline__ float4 numbers() const { return head.widen(piece); }

    // Writes what was read to a tile in shared memory.
    __device__ __forceinline__ void put(float (&tile)[kSteps][Width]) const {
        const Spot<Width> spot;
        if (spot.exists()) {
            spot.put(tile, numbers());
        }
    }

    // Writes the thread's piece of a tile to memory.
    __device__ __forceinline__ void store(const Place& place, int tile, const float4& x,
                                          int first_channel = 0) const {
        const Spot<Width> spot;
        if (spot.exists() && spot.step < place.steps_of(tile)) {
            head.store(place.first_step(tile) + spot.step, first_channel + spot.channel, x);
        }
    }
};

// Puts decays, whose logarithms were read, into a tile. Logarithms of channels that do not exist are 0, and
// their state is 0 whatever it is multiplied by.
template <int Width>
__device__ __forceinline__ void put_decays(const Stream<Width>& logarithms,
                                           float (&tile)[kSteps][Width]) {
    const float4 x = logarithms.numbers();
    Spot<Width>().put(tile, make_float4(expf(x.x), expf(x.y), expf(x.z), expf(x.w)));
}

}  // namespace seqmix::rwkv7
