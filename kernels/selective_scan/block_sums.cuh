// dB and dC of a part's steps, added over the channels of a block: those that lie side by side in a warp
// lane by lane, then the warps in shared memory, in this order always. The blocks' sums are added by
// selective_scan/sums.cuh.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "selective_scan/number.cuh"
#include "selective_scan/params.h"
#include "selective_scan/place.cuh"
#include "selective_scan/state.cuh"

namespace seqmix::selective_scan {

template <typename Number, int Lanes, int Numbers, int Depth, int Threads>
struct BlockSums {
    using Share = selective_scan::Share<Number, Lanes, Numbers>;
    using Values = typename Share::Values;

    static constexpr int kStates = Share::kStates;
    static constexpr int kWarps = Threads / 32;
    static constexpr int kRows = 32 / Lanes;  // channels that lie side by side in a warp

    float at[kWarps][Depth][2][kStates];

    // Keeps the sums of the warp's channels for step `t` of the part.
    __device__ __forceinline__ void put(const Share& share, int t, const Values& db,
                                        const Values& dc) {
        constexpr int kAll = 2 * Share::kOwnFloats;
        constexpr int kKept = kAll / kRows;  // of a lane
        static_assert(kAll % kRows == 0, "each lane keeps a part of the sums");
        typename Share::Floats of_b;
        typename Share::Floats of_c;
        to_floats<Number, Numbers>(of_b, db);
        to_floats<Number, Numbers>(of_c, dc);
        float sums[kAll];
#pragma unroll
        for (int i = 0; i < Share::kOwnFloats; ++i) {
            sums[i] = of_b[i];
            sums[Share::kOwnFloats + i] = of_c[i];
        }
        if constexpr (kRows > 1) {
            sum_lanes<16, Lanes>(sums, share.lane);
        }
        const int first = share.lane / Lanes * kKept;
        constexpr int kWidth = kKept < 4 ? kKept : 4;
#pragma unroll
        for (int i = 0; i < kKept; i += kWidth) {
            const int side = (first + i) / Share::kOwnFloats;
            float* to = &at[warp_of_block()][t][side][share.state((first + i) % Share::kOwnFloats)];
            if constexpr (kWidth == 4) {
                *reinterpret_cast<float4*>(to) =
                    make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
            } else {
#pragma unroll
                for (int j = 0; j < kWidth; ++j) {
                    to[j] = sums[i + j];
                }
            }
        }
    }

    // Adds them over the warps and stores them. The part begins at this position of a tile of `steps` steps.
    __device__ __forceinline__ void store(const BackwardParams& params, const Place& place,
                                          int steps, int tile, int position) const {
        const Scan& scan = params.scan;
        const int blocks = static_cast<int>(gridDim.x) / scan.sequences;
        const int block = static_cast<int>(blockIdx.x) % blocks;
        const bool vector = scan.states % 4 == 0;
        for (int i = thread_of_block(); i < Depth * 2 * kStates / 4; i += Threads) {
            const int state = 4 * i % kStates;
            const int side = 4 * i / kStates % 2;
            const int t = 4 * i / (2 * kStates);
            const int step =
                tile * steps + (scan.reverse ? steps - 1 - (position + t) : position + t);
            if (state >= scan.states || !place.holds(step)) {
                continue;
            }
            float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
            for (int warp = 0; warp < kWarps; ++warp) {
                const float4 x = *reinterpret_cast<const float4*>(&at[warp][t][side][state]);
                sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
            }
            const int64_t row =
                (((int64_t{place.batch} * blocks + block) * scan.seqlen + step) * 2 + side);
            float* to = params.of_steps + row * scan.states + state;
            if (vector) {
                *reinterpret_cast<float4*>(to) = sum;
            } else {
                const float all[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if (state + j < scan.states) {
                        to[j] = all[j];
                    }
                }
            }
        }
    }
};

}  // namespace seqmix::selective_scan
