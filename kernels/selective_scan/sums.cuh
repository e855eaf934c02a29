// The last sums of the gradients, in an order that depends on sizes and plan alone: those over channels
// for each step, and those over steps for each channel.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "selective_scan/chunk.cuh"
#include "selective_scan/number.cuh"
#include "selective_scan/params.h"
#include "selective_scan/place.cuh"

namespace seqmix::selective_scan {

// dB and dC of variable coefficients.
//
// grid    x: tiles of 32 steps by 32 states of one of the two, of each group of each sequence of the batch
// thread  adds one state of four steps over the group's blocks, and stores those that lie contiguously
//         with its neighbours'
template <typename Number>
struct StepSums {
    static constexpr int kSide = 32;  // steps and states of a tile
    static constexpr int kThreads = 256;
    static constexpr int kRows = kThreads / kSide;

    struct Smem {
        float sums[kSide][kSide + 1];  // by step; the padding moves each row to another bank
    };

    __device__ __forceinline__ static void run(const StepSumsParams& params, Smem& smem) {
        const int tiles_of_states = ceil_divide(params.states, kSide);
        const int tiles_of_steps = ceil_divide(params.seqlen, kSide);
        int tile = static_cast<int>(blockIdx.x);
        const bool is_c = tile % 2 != 0;
        tile /= 2;
        const int state = tile % tiles_of_states * kSide;
        tile /= tiles_of_states;
        const int step = tile % tiles_of_steps * kSide;
        tile /= tiles_of_steps;
        const int64_t group = tile % params.groups;
        const int64_t batch = tile / params.groups;
        const Coefficient& to = is_c ? params.c : params.b;
        if (to.at == nullptr) {
            return;
        }
        int start = 0;
        int end = params.seqlen;
        if (params.cu_seqlens != nullptr) {  // steps of no sequence have no sums
            start = min(max(params.cu_seqlens[0], 0), params.seqlen);
            end = min(max(params.cu_seqlens[params.sequences], start), params.seqlen);
        }
        const auto exists = [&](int t, int n) {
            return t >= start && t < end && n < params.states;
        };
        const int row = thread_of_block() / kSide;
        const int column = thread_of_block() % kSide;
        const int64_t first = (batch * params.groups + group) * params.blocks_of_group;
        for (int i = row; i < kSide; i += kRows) {
            const int t = step + i;
            const int n = state + column;
            float sum = 0.f;
            if (exists(t, n)) {
                for (int block = 0; block < params.blocks_of_group; ++block) {
                    const int64_t of_block = (first + block) * params.seqlen + t;
                    sum += params.from[(2 * of_block + is_c) * params.states + n];
                }
            }
            smem.sums[i][column] = is_c ? sum * readout<Number>(n) : sum;
        }
        __syncthreads();  // all sums are there, before they are stored
        const bool along_steps = to.kind == kAlongSteps;
        for (int i = row; i < kSide; i += kRows) {
            const int t = along_steps ? column : i;
            const int n = along_steps ? i : column;
            if (exists(step + t, state + n)) {
                const int64_t at = batch * to.batch_stride + group * to.group_stride +
                                   (state + n) * to.state_stride + (step + t) * to.step_stride;
                store_element(to.at, at, smem.sums[t][n], params.dtype);
            }
        }
    }
};

// Gradients of A, D, delta_bias and constant coefficients.
//
// grid    x: states of all channels; y: which gradient
template <typename Number>
struct ChannelSums {
    static constexpr int kThreads = 256;

    struct Smem {};

    __device__ __forceinline__ static void run(const ChannelSumsParams& params, Smem&) {
        const int which = static_cast<int>(blockIdx.y);
        const ChannelSum& sum = which == 0   ? params.a
                                : which == 1 ? params.b
                                : which == 2 ? params.c
                                : which == 3 ? params.skip
                                             : params.delta_bias;
        const int64_t index = int64_t{blockIdx.x} * kThreads + thread_of_block();
        const int64_t all = params.dim * sum.states;
        if (sum.to == nullptr || index >= all) {
            return;
        }
        float x = 0.f;
        for (int64_t row = 0; row < params.rows; ++row) {
            x += sum.from[row * all + index];
        }
        const int64_t channel = index / sum.states;
        const int state = static_cast<int>(index % sum.states);
        sum.to[channel * sum.channel_stride + state * sum.state_stride] =
            sum.readout ? x * readout<Number>(state) : x;
    }
};

}  // namespace seqmix::selective_scan
