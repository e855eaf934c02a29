// One step of each sequence of a batch, whose last inputs are kept in a state in memory.
//
// grid    x: tiles of channels, then rows of the batch
// block   copies the state of its channels to shared memory and back, in the order that memory has
// thread  has a channel
#pragma once

#include <cstdint>

#include "causal_conv1d/filter.cuh"
#include "causal_conv1d/params.h"
#include "causal_conv1d/tile.cuh"
#include "common/warp.cuh"

namespace seqmix::causal_conv1d {

template <typename Element, int MaxWidth>
struct Update {
    static constexpr int kThreads = causal_conv1d::kThreads;

    struct Smem {
        uint32_t state[kThreads * (MaxWidth - 1)];  // the bits of an element each: channel, step
    };

    __device__ __forceinline__ static void run(const UpdateParams& params, Smem& smem) {
        const int width = params.filter.width, ages = width - 1;
        const int row = static_cast<int>(blockIdx.x) / params.channel_tiles;
        const int first = static_cast<int>(blockIdx.x) % params.channel_tiles * kThreads;
        // an entry that does not exist marks a row of padding
        const int entry =
            params.conv_state_indices == nullptr ? row : params.conv_state_indices[row];
        if (entry < 0 || entry >= params.entries) {
            return;
        }
        const State& conv_state = params.conv_state;
        auto* state = static_cast<Bits<Element>*>(conv_state.at) +
                      entry * conv_state.sequence_stride + first * conv_state.channel_stride;
        const int channels = min(params.dim - first, kThreads);
        // element i of the state in the order that lets neighbouring threads have neighbours
        const bool by_channel = conv_state.channel_stride >= conv_state.step_stride;
        const auto each = [&](const auto& with) {
#pragma unroll 1
            for (int i = thread_of_block(); i < channels * ages; i += kThreads) {
                const int channel = by_channel ? i / ages : i % channels;
                const int step = by_channel ? i % ages : i / channels;
                with(state[channel * conv_state.channel_stride + step * conv_state.step_stride],
                     smem.state[channel * ages + step]);
            }
        };
        each([](Bits<Element>& memory, uint32_t& copy) { copy = memory; });
        __syncthreads();  // the state is there, before other threads read it

        const int channel = thread_of_block();
        if (channel < channels) {
            const int64_t at = first + channel;
            const Bits<Element> x = static_cast<const Bits<Element>*>(
                params.x.at)[row * params.x.sequence_stride + at * params.x.channel_stride];
            uint32_t* const inputs = smem.state + channel * ages;
            // in the order of the other kernels, so that their results have the same bits
            float sum = load_tap(params.filter, first + channel, width);
            Bits<Element> input = x;
#pragma unroll 1
            for (int lag = 0; lag < width; ++lag) {
                sum += load_tap(params.filter, first + channel, lag) * from_bits<Element>(input);
                if (lag < ages) {
                    // each input takes the place of the one before it
                    const Bits<Element> before = static_cast<Bits<Element>>(inputs[ages - 1 - lag]);
                    inputs[ages - 1 - lag] = input;
                    input = before;
                }
            }
            static_cast<Bits<Element>*>(
                params.out.at)[row * params.out.sequence_stride + at * params.out.channel_stride] =
                to_bits<Element>(params.silu ? silu(sum) : sum);
        }
        __syncthreads();  // the state has moved on, before other threads read it
        each([](Bits<Element>& memory, uint32_t& copy) {
            memory = static_cast<Bits<Element>>(copy);
        });
    }
};

}  // namespace seqmix::causal_conv1d
