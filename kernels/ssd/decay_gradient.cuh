// The gradients of the exponents A dt'[t]: what passes over each step of a chunk.
//
// A change of the exponent of step t changes, in proportion to itself, all that comes from before t
// and acts at t or later. With the summands
//
//     P[i, j]  of the loss that input j brings through output i of the chunk
//     E[i]     of what the state before the chunk brings through output i
//     D[j]     of what input j brings through the state after the chunk
//     R        of what the state before the chunk brings through the state after it
//
// the gradient is  sum over i >= t and j < t of P[i, j]  +  sum over i >= t of E[i]
//                  +  sum over j < t of D[j]  +  R.
//
// Each of these passes over t. (The difference of what leaves and what enters the steps from t on is
// the same number, but is lost in rounding where decays are strong.)
#pragma once

#include <cstdint>

#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/warp.cuh"
#include "ssd/place.cuh"
#include "ssd/products.cuh"
#include "ssd/steps.cuh"

namespace seqmix::ssd {

// Sums of a slice on their way to one warp, two halves of the columns each, and of a head's slices.
template <int Warps>
struct alignas(16) DecayGradient {
    float crossing[Warps][kChunk];  // the sums of P, of the rows and columns of a warp
    float inflow[2][kChunk];        // E
    float outflow[2][kChunk];       // D / dt'
    float input[2][kChunk];         // the gradients of dt' through the inputs
    float along[kChunk];            // of a head: the gradients of the exponents
    float inputs[kChunk];           // of a head: the sums of `input`

    // Stores a number for each of the 16 rows that begin at `row`.
    __device__ __forceinline__ static void note(float (&to)[kChunk], const RowPair& numbers,
                                                int row) {
        if (lane_of_warp() % 4 == 0) {
            to[row + lane_of_warp() / 4] = numbers[0];
            to[row + lane_of_warp() / 4 + 8] = numbers[1];
        }
    }

    // Stores the sums over i >= t and j < t of P[i, j] for the steps t of the chunk, from the rows i
    // that begin at `row` and the columns j of half `half`. P is 0 above the diagonal.
    //
    // Sums over j < t are the product of P with a matrix of ones above the diagonal: on tensor cores,
    // with P as the sum of two bfloat16, which have its range and 16 bits of it.
    __device__ __forceinline__ static void note_crossing(float (&to)[kChunk],
                                                         const Products<4>& p, int row, int half) {
        using Half = __nv_bfloat16;
        constexpr uint32_t kOne = 0x3f80;
        uint32_t high[2][4];
        uint32_t low[2][4];
#pragma unroll
        for (int step = 0; step < 2; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = &p.values[2 * step + i / 2][i % 2 * 2];
                high[step][i] = pack<Half>(pair[0], pair[1]);
                float rounded[2];
                unpack<Half>(rounded[0], rounded[1], high[step][i]);
                low[step][i] = pack<Half>(pair[0] - rounded[0], pair[1] - rounded[1]);
            }
        }
        const int lane = lane_of_warp();
        const int first = row + lane / 4;
#pragma unroll
        for (int part = 0; part < kChunk / 8; ++part) {
            // the columns j and t, from the half's first on
            const int column = kChunk / 2 * half + 8 * part;
            if (column >= kChunk) {
                continue;
            }
            float sums[4] = {};
            if (column < row + 16) {  // else no t is at most a row
#pragma unroll
                for (int step = 0; step < 2; ++step) {
                    uint32_t ones[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int j = 16 * step + 8 * i + 2 * (lane % 4);
                        const int t = 8 * part + lane / 4;
                        ones[i] = (j < t ? kOne : 0) | (j + 1 < t ? kOne << 16 : 0);
                    }
                    if (16 * step < 8 * part + 8) {
                        multiply<Half>(sums, high[step], ones[0], ones[1]);
                        multiply<Half>(sums, low[step], ones[0], ones[1]);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int t = column + 2 * (lane % 4) + i;
                float sum = (t <= first ? sums[i] : 0.f) + (t <= first + 8 ? sums[2 + i] : 0.f);
#pragma unroll
                for (int distance = 4; distance < 32; distance *= 2) {
                    sum += __shfl_xor_sync(kAllLanes, sum, distance);
                }
                if (lane / 4 == 0) {
                    to[t] = sum;
                }
            }
        }
        // columns of the upper half pass over no step of the lower one
        if (half == 1) {
            to[lane] = 0.f;
        }
    }

    // Adds a slice to the head's gradients; one warp, of which a lane owns two neighbouring steps.
    // `through` is R.
    __device__ __forceinline__ void add_slice(const Steps& steps, float through, bool first) {
        const int lane = lane_of_warp();
        float2 sum = make_float2(through, through);
#pragma unroll
        for (int warp = 0; warp < Warps; ++warp) {
            const float2 part = pair(crossing[warp]);
            sum.x += part.x;
            sum.y += part.y;
        }
        // sums over i >= t: of the steps of later lanes, and of the lane's own
        const float2 enter = make_float2(pair(inflow[0]).x + pair(inflow[1]).x,
                                         pair(inflow[0]).y + pair(inflow[1]).y);
        float later = enter.x + enter.y;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const float behind = __shfl_down_sync(kAllLanes, later, distance);
            later += lane + distance < 32 ? behind : 0.f;
        }
        const float behind = __shfl_down_sync(kAllLanes, later, 1);
        const float from = enter.y + (lane < 31 ? behind : 0.f);
        sum.y += from;
        sum.x += enter.x + from;
        // sums over j < t
        const float2 size = pair(steps.size);
        const float2 leave =
            make_float2(size.x * (pair(outflow[0]).x + pair(outflow[1]).x),
                        size.y * (pair(outflow[0]).y + pair(outflow[1]).y));
        const float before =
            __shfl_up_sync(kAllLanes, warp_prefix_sum(leave.x + leave.y), 1);
        const float earlier = lane > 0 ? before : 0.f;
        sum.x += earlier;
        sum.y += earlier + leave.x;

        float2 through_inputs = make_float2(pair(input[0]).x + pair(input[1]).x,
                                            pair(input[0]).y + pair(input[1]).y);
        auto& head = *reinterpret_cast<float2*>(along + 2 * lane);
        auto& head_inputs = *reinterpret_cast<float2*>(inputs + 2 * lane);
        if (!first) {
            sum.x += head.x;
            sum.y += head.y;
            through_inputs.x += head_inputs.x;
            through_inputs.y += head_inputs.y;
        }
        head = sum;
        head_inputs = through_inputs;
    }

private:
    // The numbers of the lane's steps.
    __device__ __forceinline__ static float2 pair(const float (&numbers)[kChunk]) {
        return *reinterpret_cast<const float2*>(numbers + 2 * lane_of_warp());
    }
};

}  // namespace seqmix::ssd
