// One step of a scan, with a state that stays in memory between calls: reading and writing it is all the
// work there is.
//
// grid    x: channels of all heads of the batch, in order
// lane    owns four floats of a channel's state, or several times four, which `lanes` neighbouring lanes
//         share
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "selective_scan/chunk.cuh"
#include "selective_scan/number.cuh"
#include "selective_scan/params.h"
#include "selective_scan/pointwise.cuh"

namespace seqmix::selective_scan {

template <typename Number>
struct Step {
    static constexpr int kThreads = 256;
    static constexpr int kPiece = 4;
    static constexpr int kNumbers = kPiece / kFloats<Number>;

    using Piece = Number[kNumbers];

    struct Smem {};

    __device__ __forceinline__ static void run(const StepParams& params, Smem&) {
        const int lanes = params.lanes;
        const int64_t row =
            (int64_t{blockIdx.x} * kThreads + thread_of_block()) / lanes;
        const int part = thread_of_block() % lanes;
        const bool exists = row < params.rows;
        const int64_t channel = row % params.channels;
        const int64_t head = row / params.channels % params.heads;
        const int64_t batch = row / params.channels / params.heads;
        const int64_t group = head / params.heads_of_group;
        const auto at = [&](const Heads& tensor, int64_t head_or_group) {
            return batch * tensor.batch_stride + head_or_group * tensor.head_stride +
                   channel * tensor.channel_stride;
        };
        const auto element = [&](const Heads& tensor) {
            const bool there = exists && tensor.at != nullptr;
            return there ? load_element(tensor.at, at(tensor, head), tensor.dtype) : 0.f;
        };
        const float biased = element(params.dt) + element(params.dt_bias);
        float size = params.softplus ? softplus(biased) : biased;
        // a NaN stays one
        size = size < params.dt_min ? params.dt_min : size > params.dt_max ? params.dt_max : size;
        const float u = element(params.x);
        const float x = size * u;
        float y = 0.f;
        for (int state = kPiece * part; exists && state < params.states; state += kPiece * lanes) {
            const int count = params.states - state;
            Piece kept;
            Piece a;
            Piece b;
            Piece c;
            const auto load = [&](Piece& numbers, const Heads& tensor, int64_t offset, bool is_c) {
                float floats[kPiece];
                load_piece(floats, tensor, offset + state * tensor.state_stride, count);
#pragma unroll
                for (int i = 0; i < kPiece; ++i) {
                    floats[i] *= is_c ? readout<Number>(i) : 1.f;
                }
                to_numbers<Number, kNumbers>(numbers, floats);
            };
            load(kept, params.state, at(params.state, head), false);
            load(a, params.a, at(params.a, head), false);
            load(b, params.b, at(params.b, group), false);
            load(c, params.c, at(params.c, group), true);
#pragma unroll
            for (int n = 0; n < kNumbers; ++n) {
                kept[n] = add_product(scaled(b[n], x), decay(a[n], size * kLog2E), kept[n]);
                y = add_inner(y, c[n], kept[n]);
            }
            float floats[kPiece];
            to_floats<Number, kNumbers>(floats, kept);
            store_piece(params.state, at(params.state, head) + state * params.state.state_stride,
                        floats, count);
        }
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
            y += __shfl_xor_sync(kAllLanes, y, distance);
        }
        if (exists && part == 0) {
            y = fmaf(element(params.skip), u, y);
            if (params.z.at != nullptr) {
                y *= silu(element(params.z));
            }
            store_element(params.out.at, at(params.out, head), y, params.out.dtype);
        }
    }

    // Four states of a tensor, those from `count` on as 0.
    __device__ __forceinline__ static void load_piece(float (&x)[kPiece], const Heads& tensor,
                                                      int64_t at, int count) {
        if (tensor.vector && count >= kPiece) {
            if (tensor.dtype == kF32) {
                const float4 four = *reinterpret_cast<const float4*>(
                    static_cast<const float*>(tensor.at) + at);
                x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
                return;
            }
            const uint2 four = *reinterpret_cast<const uint2*>(
                static_cast<const uint16_t*>(tensor.at) + at);
            if (tensor.dtype == kF16) {
                unpack<__half>(x[0], x[1], four.x);
                unpack<__half>(x[2], x[3], four.y);
            } else {
                unpack<__nv_bfloat16>(x[0], x[1], four.x);
                unpack<__nv_bfloat16>(x[2], x[3], four.y);
            }
            return;
        }
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
            x[i] = i < count ? load_element(tensor.at, at + i * tensor.state_stride, tensor.dtype)
                             : 0.f;
        }
    }

    // Writes the first `count` of four states, which are f32.
    __device__ __forceinline__ static void store_piece(const Heads& tensor, int64_t at,
                                                       const float (&x)[kPiece], int count) {
        float* to = static_cast<float*>(tensor.at) + at;
        if (tensor.vector && count >= kPiece) {
            *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
            return;
        }
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
            if (i < count) {
                to[i * tensor.state_stride] = x[i];
            }
        }
    }
};

}  // namespace seqmix::selective_scan
