// How the warps of a block share slices of channels.
#pragma once

#include "common/warp.cuh"
#include "ssd/place.cuh"
#include "ssd/state.cuh"

namespace seqmix::ssd {

template <typename State>
struct Slices {
    static constexpr int kWarps = 4;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kWidth = kSlice<typename State::Element>;
    static constexpr int kWarpChannels = State::kChannels;
    static constexpr int kWarpsOfSlice = kWidth / kWarpChannels;
    static constexpr int kCount = kWarps / kWarpsOfSlice;
    static_assert(kWarps % kWarpsOfSlice == 0, "slices are whole");

    static constexpr int kElements = 16 / sizeof(typename State::Element);  // of 16 bytes

    // The group of the block.
    __device__ __forceinline__ static int group(const Layer& layer) {
        return group_of_block(layer, kWidth, kCount);
    }

    // The slice of this warp among the block's, and the warp's first channel in it.
    __device__ __forceinline__ static int of_warp() { return warp_of_block() / kWarpsOfSlice; }
    __device__ __forceinline__ static int warp_channel() {
        return warp_of_block() % kWarpsOfSlice * kWarpChannels;
    }

    // Slice `index` of the block.
    __device__ __forceinline__ static Slice slice(const Layer& layer, int index) {
        return slice_of_block(layer, kWidth, kCount, index);
    }

    // The channels of this warp: none or fewer than kWarpChannels where a head ends.
    __device__ __forceinline__ static Slice channels_of_warp(const Layer& layer) {
        Slice slice = slice_of_block(layer, kWidth, kCount, of_warp());
        slice.channel += warp_channel();
        slice.channels = min(max(slice.channels - warp_channel(), 0), kWarpChannels);
        return slice;
    }

    // Calls with(row, chunk) for the chunks of 16 bytes of the warp's channels in `Rows` rows of a
    // tile, each in one lane. The rows that eight neighbouring lanes take differ in their swizzles as
    // much as in their columns, so that their accesses have no bank conflicts.
    template <int Rows, typename With>
    __device__ __forceinline__ static void for_each_chunk(const With& with) {
        // chunks of a row: eight lanes take 8 / kOwn rows
        constexpr int kOwn = kWarpChannels / kElements;
#pragma unroll
        for (int pass = 0; pass < Rows * kOwn / 32; ++pass) {
            const int eight = 4 * pass + lane_of_warp() / 8;
            const int lane = lane_of_warp() % 8;
            const int row = eight / kOwn * 8 + eight % kOwn + lane / kOwn * kOwn;
            with(row, warp_channel() / kElements + lane % kOwn);
        }
    }

    // dt of the chunk that begins `step` steps into the place, for the warp that will scan it.
    __device__ __forceinline__ static StepInputs inputs(const Layer& layer, const Place& place,
                                                        int step) {
        const int warp = warp_of_block();
        if (warp >= kCount) {
            return {};
        }
        return load_steps<typename State::Element>(layer, slice(layer, warp), place.start + step,
                                   place.steps - step);
    }

    // Fills `steps` of each slice from the inputs, of which `rows` are steps; one warp a slice.
    __device__ __forceinline__ static void scan(Steps<kWidth> (&steps)[kCount],
                                                const Layer& layer, const StepInputs& inputs,
                                                int rows) {
        const int warp = warp_of_block();
        if (warp < kCount) {
            scan_steps<typename State::Element>(steps[warp], layer, slice(layer, warp), inputs,
                                                rows);
        }
    }
};

}  // namespace seqmix::ssd
