// The gradients of decays that are a number a step, where attention is not causal.
//
// All steps read the last state, which has of step j what the decays behind it let through: so the
// gradient of a decay is the sum of k dk over the steps before it, and of the initial state times its
// gradient. Nothing of that cancels, and a step's decay of 0 has let none of it through.
//
// grid    y: heads; z: sequences, or one for all if a decay is a number a head
// block   takes kThreads steps at a time, in order
// thread  one of them
#pragma once

#include <cstdint>

#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"

namespace seqmix::linear_attention {

struct LastDecays {
    static constexpr int kThreads = 256;
    static constexpr int kWarps = kThreads / 32;

    struct Smem {
        float sums[kWarps];
    };

    __device__ __forceinline__ static void run(const LastDecaysParams& params, Smem& smem) {
        const int head = static_cast<int>(blockIdx.y);
        float total = 0.f;  // of this thread's gradients
#pragma unroll 1
        for (int sequence = static_cast<int>(blockIdx.z); sequence < params.sequences;
             sequence += static_cast<int>(gridDim.z)) {
            const Sequence all =
                sequence_of(params.cu_seqlens, params.steps, params.segment, sequence);
            float before = all_of(initial(params, all, sequence, head), smem);
#pragma unroll 1
            for (int first = 0; first < all.steps; first += kThreads) {
                const int step = all.start + first + thread_of_block();
                const bool exists = first + thread_of_block() < all.steps;
                const float* product = static_cast<const float*>(params.products.at) +
                                       sequence * params.products.batch_stride +
                                       step * params.products.step_stride +
                                       head * params.products.head_stride;
                float sum = exists ? *product : 0.f;  // of the warp's steps up to the thread's
#pragma unroll
                for (int distance = 1; distance < 32; distance *= 2) {
                    const float other = __shfl_up_sync(kAllLanes, sum, distance);
                    if (lane_of_warp() >= distance) {
                        sum += other;
                    }
                }
                __syncthreads();  // all have read the sums before, before they are overwritten
                if (lane_of_warp() == 31) {
                    smem.sums[warp_of_block()] = sum;
                }
                __syncthreads();  // sums of all warps, before each reads them
                // up to the step before the thread's: its own may be so large that nothing else is left
                float gradient = __shfl_up_sync(kAllLanes, sum, 1);
                gradient = lane_of_warp() > 0 ? gradient : 0.f;
                float warps = 0.f;
#pragma unroll
                for (int warp = 0; warp < kWarps; ++warp) {
                    if (warp == warp_of_block()) {
                        gradient += before + warps;
                    }
                    warps += smem.sums[warp];
                }
                if (exists && params.per_head != 0) {
                    total += gradient;
                } else if (exists) {
                    const_cast<float*>(params.out.at)[sequence * params.out.batch_stride +
                                                      step * params.out.step_stride +
                                                      head * params.out.head_stride] = gradient;
                }
                before += warps;
            }
        }
        if (params.per_head != 0) {
            const float sum = all_of(total, smem);
            if (thread_of_block() == 0) {
                const_cast<float*>(params.out.at)[head * params.out.head_stride] = sum;
            }
        }
    }

    // This thread's part of the product of a sequence's initial state with its gradient, which is that
    // of the last state times all decays.
    __device__ __forceinline__ static float initial(const LastDecaysParams& params,
                                                    const Sequence& all, int sequence, int head) {
        const auto product = [&](const States& initial, const float* gradients, int values) {
            float sum = 0.f;
            if (initial.at == nullptr) {
                return sum;
            }
            const int count = params.channels * values;
            const float* from = gradients + (all.slot * params.heads + head) * count;
#pragma unroll 4
            for (int i = thread_of_block(); i < count; i += kThreads) {
                sum += from[i] * initial.at[sequence * initial.sequence_stride +
                                            head * initial.head_stride +
                                            i / values * initial.key_stride +
                                            i % values * initial.value_stride];
            }
            return sum;
        };
        float decay = 1.f;
        for (int segment = 0; segment < all.segments; ++segment) {
            decay *= params.decays[(all.slot + segment) * params.heads + head];
        }
        const float sum = product(params.initial, params.gradients, params.values) +
                          product(params.initial_z, params.z_gradients, 1);
        return decay == 0.f ? 0.f : sum * decay;
    }

    // The sum of all threads' numbers, in order, for each of them.
    __device__ __forceinline__ static float all_of(float number, Smem& smem) {
        number = warp_sum(number);
        __syncthreads();  // all have read the sums before, before they are overwritten
        if (lane_of_warp() == 0) {
            smem.sums[warp_of_block()] = number;
        }
        __syncthreads();  // sums of all warps, before each reads them
        float sum = 0.f;
#pragma unroll
        for (int warp = 0; warp < kWarps; ++warp) {
            sum += smem.sums[warp];
        }
        return sum;
    }
};

}  // namespace seqmix::linear_attention
