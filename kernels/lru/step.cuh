// One step of each sequence of a batch, whose states stay in memory between calls.
//
// grid    x: tiles of states, then rows of the batch
// thread  has a state of a row
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "lru/number.cuh"
#include "lru/params.h"
#include "lru/place.cuh"

namespace seqmix::lru {

template <typename Element>
struct OneStep {
    static constexpr int kThreads = lru::kThreads;

    struct Smem {};

    __device__ __forceinline__ static void run(const StepParams& params, Smem&) {
        using Pair = PairOf<Element>;
        using Bits = typename Pair::Bits;
        const int block = static_cast<int>(blockIdx.x);
        const int row = block / params.tiles;
        const int state = (block - row * params.tiles) * kThreads + thread_of_block();
        // an entry that does not exist marks a row of padding
        const int entry = params.entries_of_rows == nullptr ? row : params.entries_of_rows[row];
        if (state >= params.states || entry < 0 || entry >= params.entries) {
            return;
        }
        const auto at = [&](const Signal& signal) {
            return static_cast<Bits*>(signal.at) + row * signal.batch_stride + state;
        };
        const Unit unit(params.a, params.gamma, state);
        const float2 after =
            unit.after(load(params.state, entry, state), Pair::widen(*at(params.x)));
        *at(params.out) = Pair::narrow(after);
        store(params.state, entry, state, after);
    }
};

}  // namespace seqmix::lru
