// One step of a scan, with a state that stays in memory between calls: reading and writing it is all the
// work there is.
//
// grid    x: tiles of a group's channels, then groups, then rows of the batch
// lane    owns four floats of a channel's state, or several times four, which neighbouring lanes share
#pragma once

#include <cstdint>

#include "common/pointwise.cuh"
#include "common/warp.cuh"
#include "selective_scan/chunk.cuh"
#include "selective_scan/number.cuh"
#include "selective_scan/step_params.h"

namespace seqmix::selective_scan {

template <typename Number>
struct Step {
    static constexpr int kThreads = 256;
    static constexpr int kPiece = 4;
    static constexpr int kNumbers = kPiece / kFloats<Number>;
    static constexpr int kMaxStates = 256;

    using Piece = Number[kNumbers];

    // What the convolution gives, of the block's channels and of its group.
    struct Smem {
        alignas(16) float b[kMaxStates];
        alignas(16) float c[kMaxStates];
        float x[kThreads];
    };

    // What a block works on.
    struct Place {
        int batch;
        int entry;  // of the states
        int group;
        int first;     // channel of the group
        int channels;  // of the group
    };

    __device__ __forceinline__ static void run(const StepParams& params, Smem& smem) {
        Place place;
        const int block = static_cast<int>(blockIdx.x);
        place.batch = block / params.group_tiles / params.groups;
        place.group = block / params.group_tiles % params.groups;
        place.first = block % params.group_tiles * (kThreads >> params.lane_bits);
        place.channels = params.heads_of_group * params.channels;
        // an entry that does not exist marks a row of padding
        place.entry = params.entries_of_rows == nullptr ? place.batch
                                                        : params.entries_of_rows[place.batch];
        if (place.entry < 0 || place.entry >= params.entries) {
            return;
        }
        const bool convolves = params.convolution.ring != nullptr;
        if (convolves) {
            convolve(params, place, smem);
            __syncthreads();  // x, B and C are there, before other threads read them
        }

        const int lanes = 1 << params.lane_bits;
        const int own = thread_of_block() >> params.lane_bits;
        const int part = thread_of_block() & (lanes - 1);
        const bool exists = place.first + own < place.channels;
        const int head = place.group * params.heads_of_group + (place.first + own) / params.channels;
        const int channel = (place.first + own) % params.channels;
        const auto at = [&](const Heads& tensor, int row, int head_or_group) {
            return row * tensor.batch_stride + head_or_group * tensor.head_stride +
                   channel * tensor.channel_stride;
        };
        const auto element = [&](const Heads& tensor) {
            const bool there = exists && tensor.at != nullptr;
            return there ? load_element(tensor.at, at(tensor, place.batch, head), tensor.dtype)
                         : 0.f;
        };
        const float biased = element(params.dt) + element(params.dt_bias);
        float size = params.softplus ? softplus(biased) : biased;
        // a NaN stays one
        size = size < params.dt_min ? params.dt_min : size > params.dt_max ? params.dt_max : size;
        const float u = convolves ? smem.x[own] : element(params.x);
        const float x = size * u;
        float y = 0.f;
#pragma unroll 1
        for (int state = kPiece * part; exists && state < params.states; state += kPiece * lanes) {
            const int count = params.states - state;
            const auto load = [&](Piece& numbers, const Heads& tensor, int64_t offset) {
                float floats[kPiece];
                load_piece(floats, tensor, offset + state * tensor.state_stride, count);
                to_numbers<Number, kNumbers>(numbers, floats);
            };
            const auto load_coefficients = [&](Piece& numbers, const Heads& tensor,
                                               const float* convolved, bool is_c) {
                float floats[kPiece];
                if (convolves) {
                    const float4 four = *reinterpret_cast<const float4*>(convolved + state);
                    floats[0] = four.x, floats[1] = four.y, floats[2] = four.z, floats[3] = four.w;
                } else {
                    const int64_t offset = at(tensor, place.batch, place.group);
                    load_piece(floats, tensor, offset + state * tensor.state_stride, count);
                }
#pragma unroll
                for (int i = 0; i < kPiece; ++i) {
                    floats[i] *= is_c ? readout<Number>(i) : 1.f;
                }
                to_numbers<Number, kNumbers>(numbers, floats);
            };
            const int64_t state_at = at(params.state, place.entry, head);
            Piece kept, a, b, c;
            load(kept, params.state, state_at);
            load(a, params.a, at(params.a, place.batch, head));
            load_coefficients(b, params.b, smem.b, false);
            load_coefficients(c, params.c, smem.c, true);
#pragma unroll
            for (int n = 0; n < kNumbers; ++n) {
                kept[n] = add_product(scaled(b[n], x), decay(a[n], size * kLog2E), kept[n]);
                y = add_inner(y, c[n], kept[n]);
            }
            float floats[kPiece];
            to_floats<Number, kNumbers>(floats, kept);
            store_piece(params.state, state_at + state * params.state.state_stride, floats, count);
        }
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
            y += __shfl_xor_sync(kAllLanes, y, distance);
        }
        if (exists && part == 0) {
            y = fmaf(element(params.skip), u, y);
            if (params.z.at != nullptr) {
                y *= silu(element(params.z));
            }
            store_element(params.out.at, at(params.out, place.batch, head), y, params.out.dtype);
        }
    }

    // Convolves x of the block's channels, and B and C of its group, which the group's first block moves
    // on in their rings.
    __device__ __forceinline__ static void convolve(const StepParams& params, const Place& place,
                                                    Smem& smem) {
        const int own = min(kThreads >> params.lane_bits, place.channels - place.first);
        const int whole = (params.states + kPiece - 1) / kPiece * kPiece;
#pragma unroll 1
        for (int i = thread_of_block(); i < own + 2 * whole; i += kThreads) {
            if (i < own) {
                const int in_group = place.first + i;
                const int head =
                    place.group * params.heads_of_group + in_group / params.channels;
                const int64_t at = place.batch * params.x.batch_stride +
                                   head * params.x.head_stride +
                                   in_group % params.channels * params.x.channel_stride;
                smem.x[i] = convolved(params, place, params.x, at,
                                      place.group * place.channels + in_group, true);
                continue;
            }
            const bool is_c = i >= own + whole;
            const int state = is_c ? i - own - whole : i - own;
            const Heads& tensor = is_c ? params.c : params.b;
            const int64_t at = place.batch * tensor.batch_stride +
                               place.group * tensor.head_stride + state * tensor.state_stride;
            const int before = params.groups * (place.channels + (is_c ? params.states : 0));
            // those that fill the last piece count as 0
            (is_c ? smem.c : smem.b)[state] =
                state < params.states
                    ? convolved(params, place, tensor, at,
                                before + place.group * params.states + state, place.first == 0)
                    : 0.f;
        }
    }

    // The convolution of one channel at the current step, whose input lies `at` there, rounded as a
    // tensor would round it; if the block owns the channel, its ring takes the input.
    __device__ __forceinline__ static float convolved(const StepParams& params, const Place& place,
                                                      const Heads& tensor, int64_t at, int channel,
                                                      bool owned) {
        const StepConvolution& filter = params.convolution;
        const int step = filter.steps[place.batch] % filter.slots;
        const int slot = step < 0 ? step + filter.slots : step;
        const int64_t ring = place.entry * filter.ring_entry_stride +
                             channel * filter.ring_channel_stride;
        float sum = filter.bias == nullptr
                        ? 0.f
                        : load_element(filter.bias, channel * filter.bias_stride, filter.bias_dtype);
        float input = load_element(tensor.at, at, tensor.dtype);
        if (owned) {
            store_element(filter.ring, ring + slot * filter.ring_slot_stride, input, tensor.dtype);
        }
#pragma unroll 1
        for (int lag = 0; lag < filter.width; ++lag) {
            if (lag > 0) {
                const int from = slot < lag ? slot - lag + filter.slots : slot - lag;
                input = load_element(filter.ring, ring + from * filter.ring_slot_stride,
                                     tensor.dtype);
            }
            const int64_t tap = channel * filter.weight_channel_stride +
                                (filter.width - 1 - lag) * filter.weight_tap_stride;
            sum = fmaf(load_element(filter.weight, tap, filter.weight_dtype), input, sum);
        }
        return rounded(filter.silu ? silu(sum) : sum, tensor.dtype);
    }

    // A number as an element of a type keeps it.
    __device__ __forceinline__ static float rounded(float x, int dtype) {
        return dtype == kF16    ? __half2float(__float2half_rn(x))
               : dtype == kBf16 ? __bfloat162float(__float2bfloat16_rn(x))
                                : x;
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
