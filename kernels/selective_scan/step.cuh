// One step of a scan, with a state that stays in memory between calls: reading and writing it is all the
// work there is.
//
// grid    x: tiles of a group's channels, then groups, then rows of the batch
// thread  prepares and finishes a channel; in between owns four floats of the states of several channels,
//         whose other floats neighbouring lanes own
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
    static constexpr int kAtOnce = 2;  // channels whose states a lane has under way

    using Piece = Number[kNumbers];

    struct Smem {
        // what the convolution gives: x of the block's channels, B and C of its group
        alignas(16) float convolved[kThreads + 2 * kMaxStates];
        // by channel of the block
        int64_t state_at[kThreads];
        int64_t a_at[kThreads];
        float size[kThreads];   // of the step, times log2(e)
        float drive[kThreads];  // the size times x
        float y[kThreads];
    };

    // What a block works on.
    struct Place {
        int batch;
        int entry;  // of the states
        int group;
        int first;  // channel of the group
        int own;    // channels
    };

    __device__ __forceinline__ static void run(const StepParams& params, Smem& smem) {
        Place place;
        const int block = static_cast<int>(blockIdx.x);
        const int channels = params.heads_of_group * params.channels;
        place.batch = block / params.group_tiles / params.groups;
        place.group = block / params.group_tiles % params.groups;
        place.first = block % params.group_tiles * params.tile;
        place.own = min(params.tile, channels - place.first);
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

        const int own = thread_of_block();
        const bool exists = own < place.own;
        const int head = place.group * params.heads_of_group + (place.first + own) / params.channels;
        const int channel = (place.first + own) % params.channels;
        const auto at = [&](const Heads& tensor, int row) {
            return row * tensor.batch_stride + head * tensor.head_stride +
                   channel * tensor.channel_stride;
        };
        const auto element = [&](const Heads& tensor) {
            const bool there = exists && tensor.at != nullptr;
            return there ? load_element(tensor.at, at(tensor, place.batch), tensor.dtype) : 0.f;
        };
        const float u = convolves && exists ? smem.convolved[own] : element(params.x);
        if (exists) {
            const float biased = element(params.dt) + element(params.dt_bias);
            float size = params.softplus ? softplus(biased) : biased;
            // a NaN stays one
            size = size < params.dt_min   ? params.dt_min
                   : size > params.dt_max ? params.dt_max
                                          : size;
            smem.size[own] = size * kLog2E;
            smem.drive[own] = size * u;
            smem.state_at[own] = at(params.state, place.entry);
            smem.a_at[own] = at(params.a, 0);
            smem.y[own] = 0.f;
        }
        __syncthreads();  // the channels are prepared, before the lanes that share them read
        move_states(params, place, smem, convolves);
        __syncthreads();  // y is there, before the threads of the channels read it
        if (exists) {
            float y = fmaf(element(params.skip), u, smem.y[own]);
            if (params.z.at != nullptr) {
                y *= silu(element(params.z));
            }
            store_element(params.out.at, at(params.out, place.batch), y, params.out.dtype);
        }
    }

    // Moves the states of the block's channels on by the step, and adds y up.
    __device__ __forceinline__ static void move_states(const StepParams& params, const Place& place,
                                                       Smem& smem, bool convolves) {
        const int lanes = 1 << params.lane_bits, rows = kThreads >> params.lane_bits;
        const int part = thread_of_block() & (lanes - 1);
        const int whole = padded(params.states);
#pragma unroll 1
        for (int first = 0; first < whole; first += kPiece * lanes) {
            const int state = first + kPiece * part;
            const int count = params.states - state;  // of the piece; not above 0: there is none
            const auto load_coefficients = [&](Piece& numbers, const Heads& tensor,
                                               const float* convolved, bool is_c) {
                float floats[kPiece] = {};
                if (count > 0 && convolves) {
                    const float4 four = *reinterpret_cast<const float4*>(convolved + state);
                    floats[0] = four.x, floats[1] = four.y, floats[2] = four.z, floats[3] = four.w;
                } else if (count > 0) {
                    load_piece(floats, tensor,
                               place.batch * tensor.batch_stride +
                                   place.group * tensor.head_stride + state * tensor.state_stride,
                               count);
                }
#pragma unroll
                for (int i = 0; i < kPiece; ++i) {
                    floats[i] *= is_c ? readout<Number>(i) : 1.f;
                }
                to_numbers<Number, kNumbers>(numbers, floats);
            };
            Piece b, c;
            load_coefficients(b, params.b, smem.convolved + params.tile, false);
            load_coefficients(c, params.c, smem.convolved + params.tile + whole, true);
#pragma unroll 1
            for (int row = thread_of_block() >> params.lane_bits; row < params.tile;
                 row += kAtOnce * rows) {
                Piece kept[kAtOnce], a[kAtOnce];
#pragma unroll
                for (int i = 0; i < kAtOnce; ++i) {
                    const int own = row + i * rows;
                    if (own < place.own && count > 0) {
                        float floats[kPiece];
                        load_floats(floats, params.state,
                                    smem.state_at[own] + state * params.state.state_stride, count);
                        to_numbers<Number, kNumbers>(kept[i], floats);
                        load_floats(floats, params.a,
                                    smem.a_at[own] + state * params.a.state_stride, count);
                        to_numbers<Number, kNumbers>(a[i], floats);
                    }
                }
#pragma unroll
                for (int i = 0; i < kAtOnce; ++i) {
                    const int own = row + i * rows;
                    float y = 0.f;
                    if (own < place.own && count > 0) {
                        const float size = smem.size[own], drive = smem.drive[own];
#pragma unroll
                        for (int n = 0; n < kNumbers; ++n) {
                            kept[i][n] =
                                add_product(scaled(b[n], drive), decay(a[i][n], size), kept[i][n]);
                            y = add_inner(y, c[n], kept[i][n]);
                        }
                        float floats[kPiece];
                        to_floats<Number, kNumbers>(floats, kept[i]);
                        store_piece(params.state,
                                    smem.state_at[own] + state * params.state.state_stride, floats,
                                    count);
                    }
                    for (int distance = lanes / 2; distance > 0; distance /= 2) {
                        y += __shfl_xor_sync(kAllLanes, y, distance);
                    }
                    if (own < place.own && part == 0) {
                        smem.y[own] += y;
                    }
                }
            }
        }
    }

    // States of whole pieces.
    __device__ __forceinline__ static int padded(int states) {
        return (states + kPiece - 1) / kPiece * kPiece;
    }

    // Convolves x of the block's channels, and B and C of its group, which the group's first block moves
    // on in their rings.
    __device__ __forceinline__ static void convolve(const StepParams& params, const Place& place,
                                                    Smem& smem) {
        const int channels = params.heads_of_group * params.channels;
        const int whole = padded(params.states);
#pragma unroll 1
        for (int i = thread_of_block(); i < params.tile + 2 * whole; i += kThreads) {
            const Heads* tensor = &params.x;
            int64_t at = 0;
            int channel = 0;
            bool exists = false, owned = true;
            if (i < params.tile) {
                const int in_group = place.first + i;
                const int head =
                    place.group * params.heads_of_group + in_group / params.channels;
                exists = i < place.own;
                at = head * tensor->head_stride +
                     in_group % params.channels * tensor->channel_stride;
                channel = place.group * channels + in_group;
            } else {
                const bool is_c = i >= params.tile + whole;
                const int state = i - params.tile - (is_c ? whole : 0);
                tensor = is_c ? &params.c : &params.b;
                exists = state < params.states;
                owned = place.first == 0;
                at = place.group * tensor->head_stride + state * tensor->state_stride;
                channel = params.groups * (channels + (is_c ? params.states : 0)) +
                          place.group * params.states + state;
            }
            at += place.batch * tensor->batch_stride;
            // what fills the last piece counts as 0
            smem.convolved[i] =
                exists ? convolved(params, place, *tensor, at, channel, owned) : 0.f;
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
        if (tensor.dtype == kF32) {
            load_floats(x, tensor, at, count);
            return;
        }
        if (tensor.pieces == kAligned && count >= kPiece) {
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

    // Four states of a tensor of f32, those from `count` on as 0 if they are not all the same.
    __device__ __forceinline__ static void load_floats(float (&x)[kPiece], const Heads& tensor,
                                                       int64_t at, int count) {
        const float* from = static_cast<const float*>(tensor.at) + at;
        if (tensor.pieces == kAligned && count >= kPiece) {
            const float4 four = *reinterpret_cast<const float4*>(from);
            x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        } else if (tensor.pieces == kSame) {
            x[0] = x[1] = x[2] = x[3] = *from;
        } else {
#pragma unroll
            for (int i = 0; i < kPiece; ++i) {
                x[i] = i < count ? from[i * tensor.state_stride] : 0.f;
            }
        }
    }

    // Writes the first `count` of four states, which are f32.
    __device__ __forceinline__ static void store_piece(const Heads& tensor, int64_t at,
                                                       const float (&x)[kPiece], int count) {
        float* to = static_cast<float*>(tensor.at) + at;
        if (tensor.pieces == kAligned && count >= kPiece) {
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
