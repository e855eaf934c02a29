// One step of linear attention, with a state that stays in memory between calls: reading and writing it is
// all the work there is.
//
//     S' = diag(decay) S,   u = v   or by the delta rule   beta (v - S'^T k),   S' + k u^T replaces S
//     out = S'^T q + (q . k) u      or with a bonus   S^T q + (q . diag(bonus) k) u
//
// so that both sums over the state come from one reading, and the state stays in registers in between.
//
// grid    x: blocks of a head, then heads, then rows of the batch
// block   takes one or more slices of 32 channels of the values, which do not see each other
// thread  owns four neighbouring channels of every sixteenth row of the state; eight threads own a row's
//         slice, a line of 128 bytes
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "linear_attention/features.cuh"
#include "linear_attention/step_params.h"

namespace seqmix::linear_attention {

template <int Size>
struct Step {
    static constexpr int kThreads = 128;
    static constexpr int kWarps = kThreads / 32;
    static constexpr int kPiece = 4;  // channels of a thread
    static constexpr int kWidth = 32;
    static constexpr int kLanes = kWidth / kPiece;
    static constexpr int kGroups = kThreads / kLanes;  // rows that a block takes side by side
    static constexpr int kRows = Size / kGroups;       // of a thread
    static constexpr int kChannels = (Size + kThreads - 1) / kThreads;  // of a key that a thread prepares
    static_assert(Size % kGroups == 0, "threads own equally many rows");

    struct Smem {
        // of each channel of the keys: q and k mapped, q scaled; those that do not exist are 0
        float q[Size];
        float k[Size];
        float decay[Size];
        // of each channel of the slice: sums over the rows that a warp owns
        alignas(16) float read[kWarps][kWidth];  // of the state that the query reads, times q
        alignas(16) float held[kWarps][kWidth];  // of the decayed state, times k
        alignas(16) float values[kWidth];
        // over the channels of the keys that a warp prepared: q . k, and of z the sums for q and k
        float sums[3][kWarps];
    };

    // The head of a row of the batch.
    struct Place {
        int row;
        int head;
        int64_t entry;  // of the states
    };

    // What outputs are made of besides sums over the state.
    struct Readout {
        float own;      // q . k, or with a bonus q . diag(bonus) k
        float divisor;  // 1 if outputs are not normalised
    };

    using Piece = float[kPiece];

    __device__ __forceinline__ static void run(const StepParams& params, Smem& smem) {
        Place place;
        const int block = static_cast<int>(blockIdx.x);
        const int of_head = block % params.blocks_of_head;
        place.head = block / params.blocks_of_head % params.heads;
        place.row = block / params.blocks_of_head / params.heads;
        // an entry that does not exist marks a row of padding
        place.entry = params.entries_of_rows == nullptr ? place.row
                                                        : params.entries_of_rows[place.row];
        if (place.entry < 0 || place.entry >= params.entries) {
            return;
        }
        const int first = of_head * params.slices * kWidth;
        const int end = min(first + params.slices * kWidth, params.dv);
        Piece state[kRows];
        load_state(state, params, place, first);
        const float beta =
            params.beta.at == nullptr ? 0.f : element(params, params.beta, place, 0);
        float z[kChannels];
        prepare(params, place, smem, z);
        __syncthreads();  // q, k, decays and the sums of all warps are there, before they are read
        const Readout readout = finish_normalizer(params, place, smem, z, beta);
#pragma unroll 1
        for (int slice = first; slice < end; slice += kWidth) {
            if (slice > first) {
                __syncthreads();  // the last slice's sums have been read, before others replace them
                load_state(state, params, place, slice);
            }
            const int own = slice + thread_of_block();
            if (thread_of_block() < kWidth) {
                smem.values[thread_of_block()] =
                    own < params.dv ? element(params, params.v, place, own) : 0.f;
            }
            sum(params, smem, state);
            __syncthreads();  // values and the sums of all warps are there, before they are read
            move(params, place, smem, state, slice, beta);
            if (thread_of_block() < kWidth && own < params.dv) {
                const int at = thread_of_block();
                const float u = update(params, smem, at, beta);
                const float out = fmaf(readout.own, u, sum_of_warps(smem.read, at));
                store(params, place, own, out / readout.divisor);
            }
        }
    }

    // Element `at` of a tensor's row for the block's head.
    __device__ __forceinline__ static float element(const StepParams& params, const Rows& rows,
                                                    const Place& place, int at) {
        const int64_t index = offset(rows, place) + at;
        if (params.dtype == kF16) {
            return __half2float(static_cast<const __half*>(rows.at)[index]);
        }
        if (params.dtype == kBf16) {
            return __bfloat162float(static_cast<const __nv_bfloat16*>(rows.at)[index]);
        }
        return static_cast<const float*>(rows.at)[index];
    }

    __device__ __forceinline__ static int64_t offset(const Rows& rows, const Place& place) {
        return place.row * rows.batch_stride +
               place.head / static_cast<int>(rows.shared) * rows.head_stride;
    }

    __device__ __forceinline__ static void store(const StepParams& params, const Place& place, int at,
                                                 float x) {
        const int64_t index = offset(params.out, place) + at;
        if (params.dtype == kF16) {
            static_cast<__half*>(params.out.at)[index] = __float2half_rn(x);
        } else if (params.dtype == kBf16) {
            static_cast<__nv_bfloat16*>(params.out.at)[index] = __float2bfloat16_rn(x);
        } else {
            static_cast<float*>(params.out.at)[index] = x;
        }
    }

    // The row of the state of the thread's n-th piece.
    __device__ __forceinline__ static int row_of(int n) {
        return n * kGroups + thread_of_block() / kLanes;
    }

    // The first channel of the thread's pieces.
    __device__ __forceinline__ static int column_of() {
        return thread_of_block() % kLanes * kPiece;
    }

    __device__ __forceinline__ static float* address(const States& states, const Place& place) {
        return states.at + place.entry * states.sequence_stride + place.head * states.head_stride;
    }

    // Reads the thread's pieces of a slice; what does not exist is 0.
    __device__ __forceinline__ static void load_state(Piece (&state)[kRows], const StepParams& params,
                                                      const Place& place, int slice) {
        const int column = slice + column_of();
        const float* from = address(params.state, place) + column;
        if (params.ragged != 0) {
            from += row_of(0) * params.state.key_stride;
#pragma unroll
            for (int n = 0; n < kRows; ++n) {
                __syncwarp();  // four accesses are on their way: addresses of more take registers
                const int columns = row_of(n) < params.dk ? params.dv - column : 0;
#pragma unroll
                for (int i = 0; i < kPiece; ++i) {
                    state[n][i] = i < columns ? from[i] : 0.f;
                }
                from += kGroups * params.state.key_stride;
            }
            return;
        }
#pragma unroll
        for (int n = 0; n < kRows; ++n) {
            float4 four = make_float4(0.f, 0.f, 0.f, 0.f);
            if (row_of(n) < params.dk && column < params.dv) {
                four = *reinterpret_cast<const float4*>(from + row_of(n) * params.state.key_stride);
            }
            state[n][0] = four.x, state[n][1] = four.y, state[n][2] = four.z, state[n][3] = four.w;
        }
    }

    // Maps q and k, and makes factors of decays; sums over the channels of the keys. What is left of z after
    // its decay stays in registers.
    __device__ __forceinline__ static void prepare(const StepParams& params, const Place& place,
                                                   Smem& smem, float (&z)[kChannels]) {
        const FeatureMap map = static_cast<FeatureMap>(params.feature_map);
        const float* decays = params.decays.at == nullptr
                                  ? nullptr
                                  : params.decays.at + place.row * params.decays.batch_stride +
                                        place.head * params.decays.head_stride;
        float sums[3] = {};
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
            const int at = i * kThreads + thread_of_block();
            float q = 0.f, k = 0.f, decay = 0.f;
            z[i] = 0.f;
            if (at < params.dk) {
                q = params.scale * map_of(map, element(params, params.q, place, at));
                k = map_of(map, element(params, params.k, place, at));
                decay = decays == nullptr ? 1.f : exp_of(decays[at * params.decays.channel_stride]);
                const bool bonus = params.bonus != nullptr;
                const float own =
                    bonus ? k * params.bonus[place.head * params.bonus_stride + at] : k;
                sums[0] = fmaf(q, own, sums[0]);
                if (params.z.at != nullptr) {
                    const float before = address(params.z, place)[at * params.z.key_stride];
                    z[i] = decay * before;
                    sums[1] = fmaf(q, bonus ? before : z[i], sums[1]);
                    sums[2] = fmaf(k, z[i], sums[2]);
                }
            }
            if (at < Size) {
                smem.q[at] = q;
                smem.k[at] = k;
                smem.decay[at] = decay;
            }
        }
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            const float sum = warp_sum(sums[i]);
            if (lane_of_warp() == 0) {
                smem.sums[i][warp_of_block()] = sum;
            }
        }
    }

    // Moves z on by the step, as a channel of the values that is 1.
    __device__ __forceinline__ static Readout finish_normalizer(const StepParams& params,
                                                                const Place& place, const Smem& smem,
                                                                const float (&z)[kChannels],
                                                                float beta) {
        float sums[3];
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            sums[i] = 0.f;
#pragma unroll
            for (int warp = 0; warp < kWarps; ++warp) {
                sums[i] += smem.sums[i][warp];
            }
        }
        if (params.z.at == nullptr) {
            return {sums[0], 1.f};
        }
        const float u = params.beta.at == nullptr ? 1.f : beta * (1.f - sums[2]);
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
            const int at = i * kThreads + thread_of_block();
            if (at < params.dk) {
                address(params.z, place)[at * params.z.key_stride] = fmaf(smem.k[at], u, z[i]);
            }
        }
        return {sums[0], fmaf(sums[0], u, sums[1]) + params.eps};
    }

    // Sums over the rows that each warp owns, and the state decayed.
    __device__ __forceinline__ static void sum(const StepParams& params, Smem& smem,
                                               Piece (&state)[kRows]) {
        Piece read = {}, held = {};
#pragma unroll
        for (int n = 0; n < kRows; ++n) {
            const float q = smem.q[row_of(n)], k = smem.k[row_of(n)];
            const float decay = smem.decay[row_of(n)];
            const float of_read = params.bonus == nullptr ? q * decay : q;
#pragma unroll
            for (int i = 0; i < kPiece; ++i) {
                read[i] = fmaf(of_read, state[n][i], read[i]);
                state[n][i] *= decay;
                held[i] = fmaf(k, state[n][i], held[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
#pragma unroll
            for (int distance = kLanes; distance < 32; distance *= 2) {
                read[i] += __shfl_xor_sync(kAllLanes, read[i], distance);
                held[i] += __shfl_xor_sync(kAllLanes, held[i], distance);
            }
        }
        if (lane_of_warp() < kLanes) {
            const int warp = warp_of_block();
            *reinterpret_cast<float4*>(&smem.read[warp][column_of()]) =
                make_float4(read[0], read[1], read[2], read[3]);
            *reinterpret_cast<float4*>(&smem.held[warp][column_of()]) =
                make_float4(held[0], held[1], held[2], held[3]);
        }
    }

    // What all warps have of a channel of the slice.
    __device__ __forceinline__ static float sum_of_warps(const float (&of_warp)[kWarps][kWidth],
                                                         int at) {
        float sum = of_warp[0][at];
#pragma unroll
        for (int warp = 1; warp < kWarps; ++warp) {
            sum += of_warp[warp][at];
        }
        return sum;
    }

    // What the step adds for a key of 1, in a channel of the slice.
    __device__ __forceinline__ static float update(const StepParams& params, const Smem& smem, int at,
                                                   float beta) {
        const float value = smem.values[at];
        return params.beta.at == nullptr ? value : beta * (value - sum_of_warps(smem.held, at));
    }

    // Adds the step to the state, and writes it.
    __device__ __forceinline__ static void move(const StepParams& params, const Place& place,
                                                const Smem& smem, const Piece (&state)[kRows],
                                                int slice, float beta) {
        const int column = slice + column_of();
        float* to = address(params.state, place) + column;
        Piece u;
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
            u[i] = update(params, smem, column_of() + i, beta);
        }
        if (params.ragged != 0) {
            to += row_of(0) * params.state.key_stride;
#pragma unroll
            for (int n = 0; n < kRows; ++n) {
                __syncwarp();  // as where it is read
                const float k = smem.k[row_of(n)];
                const int columns = row_of(n) < params.dk ? params.dv - column : 0;
#pragma unroll
                for (int i = 0; i < kPiece; ++i) {
                    if (i < columns) {
                        to[i] = fmaf(k, u[i], state[n][i]);
                    }
                }
                to += kGroups * params.state.key_stride;
            }
            return;
        }
#pragma unroll
        for (int n = 0; n < kRows; ++n) {
            if (row_of(n) < params.dk && column < params.dv) {
                const float k = smem.k[row_of(n)];
                *reinterpret_cast<float4*>(to + row_of(n) * params.state.key_stride) =
                    make_float4(fmaf(k, u[0], state[n][0]), fmaf(k, u[1], state[n][1]),
                                fmaf(k, u[2], state[n][2]), fmaf(k, u[3], state[n][3]));
            }
        }
    }
};

}  // namespace seqmix::linear_attention
