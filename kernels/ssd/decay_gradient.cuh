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
#include "common/operands.cuh"
#include "common/warp.cuh"
#include "ssd/params.h"
#include "ssd/place.cuh"
#include "ssd/products.cuh"
#include "ssd/steps.cuh"

namespace seqmix::ssd {

// Sums of a slice on their way to one warp, two halves of the columns each, and of a head's slices.
template <typename Element, int Warps>
struct alignas(16) DecayGradient {
    static constexpr int kSteps = kChunk<Element>;
    using Numbers = float[kSteps];  // one a step

    Numbers crossing[Warps];  // the sums of P, of the rows and columns of a warp
    Numbers inflow[2];        // E
    Numbers outflow[2];       // D / dt'
    Numbers input[2];         // the gradients of dt' through the inputs
    Numbers along;            // of a head: the gradients of the exponents
    Numbers inputs;           // of a head: the sums of `input`

    // Stores a number for each of the 16 rows that begin at `row`.
    __device__ __forceinline__ static void note(Numbers& to, const RowPair& numbers, int row) {
        if (lane_of_warp() % 4 == 0) {
            to[row + lane_of_warp() / 4] = numbers[0];
            to[row + lane_of_warp() / 4 + 8] = numbers[1];
        }
    }

    // Stores the sums over i >= t and j < t of P[i, j] for the steps t of the chunk, from the rows i
    // that begin at `row` and the columns j of half `half`. P is 0 above the diagonal.
    //
    // Sums over j < t are the product of P with a matrix of ones above the diagonal: on tensor cores,
    // with P as the sum of bfloat16, which have its range. Two of them are 16 bits, enough for
    // gradients of as many.
    __device__ __forceinline__ static void note_crossing(Numbers& to,
                                                         const Products<kSteps / 16>& p, int row,
                                                         int half) {
        using Term = __nv_bfloat16;
        constexpr uint32_t kOne = 0x3f80;
        constexpr int kUsed = sizeof(Element) == 2 ? 2 : kTerms;
        constexpr int kOperands = kSteps / 32;  // of 16 columns
        uint32_t terms[kUsed][kOperands][4];
#pragma unroll
        for (int step = 0; step < kOperands; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* pair = &p.values[2 * step + i / 2][i % 2 * 2];
                uint32_t all[kTerms];
                split(all, make_float2(pair[0], pair[1]));
#pragma unroll
                for (int term = 0; term < kUsed; ++term) {
                    terms[term][step][i] = all[term];
                }
            }
        }
        const int lane = lane_of_warp();
        const int first = row + lane / 4;
#pragma unroll
        for (int part = 0; part < kSteps / 8; ++part) {
            // the columns j and t, from the half's first on
            const int column = kSteps / 2 * half + 8 * part;
            if (column >= kSteps) {
                continue;
            }
            float sums[4] = {};
            if (column < row + 16) {  // else no t is at most a row
#pragma unroll
                for (int step = 0; step < kOperands; ++step) {
                    uint32_t ones[2];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int j = 16 * step + 8 * i + 2 * (lane % 4);
                        const int t = 8 * part + lane / 4;
                        ones[i] = (j < t ? kOne : 0) | (j + 1 < t ? kOne << 16 : 0);
                    }
                    if (16 * step < 8 * part + 8) {
#pragma unroll
                        for (int term = 0; term < kUsed; ++term) {
                            multiply<Term>(sums, terms[term][step], ones[0], ones[1]);
                        }
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
        if (half == 1 && lane < kSteps / 2) {
            to[lane] = 0.f;
        }
    }

    // Adds a slice to the head's gradients; one warp, of which a lane owns two neighbouring steps.
    // `through` is R.
    __device__ __forceinline__ void add_slice(const Steps<kSteps>& steps, float through,
                                              bool first) {
        const int lane = lane_of_warp();
        float2 sum = make_float2(through, through);
#pragma unroll
        for (int warp = 0; warp < Warps; ++warp) {
            sum = sum_of(sum, own(crossing[warp]));
        }
        // sums over i >= t: of the steps of later lanes, and of the lane's own
        const float2 enter = sum_of(own(inflow[0]), own(inflow[1]));
        float later = enter.x + enter.y;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const float behind = __shfl_down_sync(kAllLanes, later, distance);
            later += lane + distance < 32 ? behind : 0.f;
        }
        const float behind = __shfl_down_sync(kAllLanes, later, 1);
        const float from = enter.y + (lane < 31 ? behind : 0.f);
        sum = sum_of(sum, make_float2(enter.x + from, from));
        // sums over j < t
        const float2 size = own(steps.size);
        const float2 outgoing = sum_of(own(outflow[0]), own(outflow[1]));
        const float2 leave = make_float2(size.x * outgoing.x, size.y * outgoing.y);
        const float before = __shfl_up_sync(kAllLanes, warp_prefix_sum(leave.x + leave.y), 1);
        const float earlier = lane > 0 ? before : 0.f;
        sum = sum_of(sum, make_float2(earlier, earlier + leave.x));

        float2 through_inputs = sum_of(own(input[0]), own(input[1]));
        if (!first) {
            sum = sum_of(sum, own(along));
            through_inputs = sum_of(through_inputs, own(inputs));
        }
        if (2 * lane < kSteps) {
            *reinterpret_cast<float2*>(along + 2 * lane) = sum;
            *reinterpret_cast<float2*>(inputs + 2 * lane) = through_inputs;
        }
    }

    // Stores the gradients of the step sizes of a head, and its sums of dA and ddt_bias; one warp.
    __device__ __forceinline__ void store(const GradientParams& params, const Place& place,
                                          const Slice& slice, const Steps<kSteps>& steps,
                                          float* sums) const {
        const Layer& layer = params.layer;
        const float rate = layer.a[slice.head];
        const float bias = layer.dt_bias != nullptr ? layer.dt_bias[slice.head] : 0.f;
        const StepInputs dt = load_steps<Element>(layer, slice, place.start, place.steps);
        const float2 exponents = own(along);
        const float2 through_inputs = own(inputs);
        const float2 sizes = own(steps.size);
        float da = 0.f;
        float dbias = 0.f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int at = 2 * lane_of_warp() + i;
            if (at < place.steps) {
                const float exponent = i == 0 ? exponents.x : exponents.y;
                const float input = i == 0 ? through_inputs.x : through_inputs.y;
                const float slope = step_size_slope(layer, dt.values[i], bias);
                const float ddt = (rate * exponent + input) * slope;
                *row_of<Element>(params.ddt, place.start + at, slice.head) =
                    static_cast<Element>(ddt);
                da += (i == 0 ? sizes.x : sizes.y) * exponent;
                dbias += ddt;
            }
        }
        da = warp_sum(da);
        dbias = warp_sum(dbias);
        if (lane_of_warp() == 0) {
            sums[0] = da;
            sums[1] = dbias;
        }
    }

private:
    // The numbers of the lane's steps, zeros behind the last one.
    __device__ __forceinline__ static float2 own(const Numbers& numbers) {
        const int first = 2 * lane_of_warp();
        return first < kSteps ? *reinterpret_cast<const float2*>(numbers + first)
                              : make_float2(0.f, 0.f);
    }

    __device__ __forceinline__ static float2 sum_of(float2 a, float2 b) {
        return make_float2(a.x + b.x, a.y + b.y);
    }
};

}  // namespace seqmix::ssd
