// The gradient of D: sums of dy x over the steps of a chunk, for each channel of a slice.
//
// warp    adds up the steps whose chunks of 16 bytes its lanes hold, eight neighbours a row
#pragma once

#include "common/range.cuh"
#include "common/warp.cuh"
#include "ssd/place.cuh"

namespace seqmix::ssd {

template <typename Element, int Warps>
struct alignas(16) SkipGradient {
    static constexpr int kChannels = kSlice<Element>;
    static constexpr int kElements = 16 / sizeof(Element);
    static_assert(kChannels == 8 * kElements, "eight lanes hold a row");

    float sums[Warps][kChannels];  // see place_of

    // Where the sums of the `four`-th four channels of a chunk lie, counted in fours: where there are
    // two, they change places halfway, so that eight lanes reach all banks.
    __device__ __forceinline__ static int place_of(int chunk, int four) {
        return kElements == 4 ? chunk : 2 * chunk + (four ^ chunk / 4 % 2);
    }

    // Stores the sums over the warp's rows of `own`, a lane's sums of its rows.
    __device__ __forceinline__ void note(float (&own)[kElements]) {
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
            own[i] += __shfl_xor_sync(kAllLanes, own[i], 8);
            own[i] += __shfl_xor_sync(kAllLanes, own[i], 16);
        }
        const int chunk = lane_of_warp();
        if (chunk < 8) {
            auto* to = reinterpret_cast<float4*>(sums[warp_of_block()]);
#pragma unroll
            for (int i = 0; i < kElements / 4; ++i) {
                to[place_of(chunk, i)] =
                    make_float4(own[4 * i], own[4 * i + 1], own[4 * i + 2], own[4 * i + 3]);
            }
        }
    }

    // Stores the sums of all warps, of each channel or added to those of the head; one warp.
    __device__ __forceinline__ void store(const Slice& slice, bool per_channel, float* to) const {
        float total = 0.f;
#pragma unroll
        for (int i = 0; i < kChannels / 32; ++i) {
            const int channel = 32 * i + lane_of_warp();
            const int four = channel / 4 % (kElements / 4);
            const int at = 4 * place_of(channel / kElements, four) + channel % 4;
            float sum = 0.f;
#pragma unroll
            for (int warp = 0; warp < Warps; ++warp) {
                sum += sums[warp][at];
            }
            if (per_channel && channel < slice.channels) {
                to[slice.channel + channel] = sum;
            }
            total += sum;  // 0 behind the last channel
        }
        if (!per_channel) {
            total = warp_sum(total);
            if (lane_of_warp() == 0) {
                *to = slice.channel == 0 ? total : *to + total;
            }
        }
    }
};

}  // namespace seqmix::ssd
