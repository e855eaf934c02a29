// A lane's share of a channel's state, and how states lie in memory.
//
// `Lanes` neighbouring lanes share a channel. Each owns `Numbers` of its numbers, in pieces of up to
// 16 bytes that alternate with those of the other lanes, so that a read of B by all lanes is one of
// neighbours.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "selective_scan/number.cuh"
#include "selective_scan/params.h"

namespace seqmix::selective_scan {

template <typename Number, int Lanes, int Numbers>
struct Share {
    static constexpr int kOwnFloats = Numbers * kFloats<Number>;
    static constexpr int kStates = Lanes * kOwnFloats;  // floats of a channel
    static constexpr int kPiece = kOwnFloats < 4 ? kOwnFloats : 4;
    static_assert(kOwnFloats % kPiece == 0 && (kPiece == 1 || kPiece == 4), "whole pieces");
    static_assert(32 % Lanes == 0 && Lanes >= 4, "steps are summed four at a time");

    using Values = Number[Numbers];
    using Floats = float[kOwnFloats];

    int lane;
    int part;  // the lane's number among those of its channel

    __device__ __forceinline__ Share() : lane(lane_of_warp()), part(lane % Lanes) {}

    // Where float i of the lane's own lies in the channel's state.
    __device__ __forceinline__ int state(int i) const {
        return kPiece * (part + Lanes * (i / kPiece)) + i % kPiece;
    }

    // Reads the lane's part of a row in shared memory.
    __device__ __forceinline__ void read(Values& numbers, const float* row) const {
        Floats floats;
#pragma unroll
        for (int i = 0; i < kOwnFloats; i += kPiece) {
            const float* from = row + state(i);
            if constexpr (kPiece == 4) {
                const float4 four = *reinterpret_cast<const float4*>(from);
                floats[i] = four.x, floats[i + 1] = four.y;
                floats[i + 2] = four.z, floats[i + 3] = four.w;
            } else {
                floats[i] = *from;
            }
        }
        to_numbers<Number, Numbers>(numbers, floats);
    }

    // Reads it from a tensor; zeros if there is none, or no such channel or state.
    __device__ __forceinline__ void load(Values& numbers, const States& tensor, int sequence,
                                         int channel, bool exists, int states) const {
        Floats floats;
        const float* from =
            tensor.at + sequence * tensor.sequence_stride + channel * tensor.channel_stride;
        const bool there = exists && tensor.at != nullptr;
#pragma unroll
        for (int i = 0; i < kOwnFloats; ++i) {
            const int at = state(i);
            floats[i] = there && at < states ? from[at * tensor.state_stride] : 0.f;
        }
        to_numbers<Number, Numbers>(numbers, floats);
    }

    // Writes it to a tensor, if there is one.
    __device__ __forceinline__ void store(const States& tensor, const Values& numbers,
                                          int sequence, int channel, bool exists,
                                          int states) const {
        if (tensor.at == nullptr || !exists) {
            return;
        }
        Floats floats;
        to_floats<Number, Numbers>(floats, numbers);
        float* to = tensor.at + sequence * tensor.sequence_stride +
                    channel * tensor.channel_stride;
#pragma unroll
        for (int i = 0; i < kOwnFloats; ++i) {
            const int at = state(i);
            if (at < states) {
                to[at * tensor.state_stride] = floats[i];
            }
        }
    }

    // The same for a channel's state that lies contiguously at `to`, 16 bytes at a time if all such
    // states do.
    __device__ __forceinline__ void store(float* to, const Values& numbers, int states) const {
        Floats floats;
        to_floats<Number, Numbers>(floats, numbers);
        const bool vector = kPiece == 4 && states % 4 == 0;
#pragma unroll
        for (int i = 0; i < kOwnFloats; i += kPiece) {
            const int at = state(i);
            if (vector && at < states) {
                if constexpr (kPiece == 4) {
                    *reinterpret_cast<float4*>(to + at) =
                        make_float4(floats[i], floats[i + 1], floats[i + 2], floats[i + 3]);
                }
            } else {
#pragma unroll
                for (int j = 0; j < kPiece; ++j) {
                    if (at + j < states) {
                        to[at + j] = floats[i + j];
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void load(Values& numbers, const float* from, int states) const {
        Floats floats;
        const bool vector = kPiece == 4 && states % 4 == 0;
#pragma unroll
        for (int i = 0; i < kOwnFloats; i += kPiece) {
            const int at = state(i);
            if (vector && at < states) {
                if constexpr (kPiece == 4) {
                    const float4 four = *reinterpret_cast<const float4*>(from + at);
                    floats[i] = four.x, floats[i + 1] = four.y;
                    floats[i + 2] = four.z, floats[i + 3] = four.w;
                }
            } else {
#pragma unroll
                for (int j = 0; j < kPiece; ++j) {
                    floats[i + j] = at + j < states ? from[at + j] : 0.f;
                }
            }
        }
        to_numbers<Number, Numbers>(numbers, floats);
    }
};

}  // namespace seqmix::selective_scan
