// From the last step to the first: all gradients of the linear recurrent unit.
//
//     g[t] = dout[t] + conj(exp(a)) g[t+1],   dx[t] = gamma g[t]
//     da = sum of conj(exp(a) h[t-1]) g[t],   dgamma = sum of Re(conj(x[t]) g[t])
//
// grid, thread   lru/place.cuh; nothing is shared
//
// The states of a group of steps are computed again from the one that was kept before it, and stay in
// registers: a recurrence that ran backwards would divide by eigenvalues.
#pragma once

#include "lru/number.cuh"
#include "lru/params.h"
#include "lru/place.cuh"

namespace seqmix::lru {

template <typename Element>
struct Backward {
    static constexpr int kThreads = lru::kThreads;

    struct Smem {};

    __device__ __forceinline__ static void run(const BackwardParams& params, Smem&) {
        const Layer& layer = params.layer;
        const Place place(layer);
        if (!place.exists()) {
            return;
        }
        const Unit unit(layer.a, layer.gamma, place.state);
        const float2 back = conjugate(unit.lambda);
        float2 carried = leaving(params, place);  // g of the step after, times conj(exp(a))
        float2 sum = {0.f, 0.f};                  // of conj(h[t-1]) g[t]
        float dgamma = 0.f;
        const int64_t slot = place.slot();
        const int groups = (place.steps() + kGroup - 1) / kGroup;
        const int end = place.first + groups * kGroup;
        Cursor<Element> x(layer.x, place, end), dout(params.dout, place, end);
        Cursor<Element> dx(params.dx, place, end);
#pragma unroll 1
        for (int group = groups - 1; group >= 0; --group) {
            x.move(-kGroup);
            dout.move(-kGroup);
            dx.move(-kGroup);
            const int count = min(place.steps() - group * kGroup, kGroup);
            float2 xs[kGroup], douts[kGroup], before[kGroup];
            before[0] = params.kept[(slot + group) * layer.states + place.state];
            x.load(xs, count);
            dout.load(douts, count);
#pragma unroll
            for (int i = 1; i < kGroup; ++i) {
                before[i] = unit.after(before[i - 1], xs[i - 1]);
            }
#pragma unroll
            for (int i = kGroup - 1; i >= 0; --i) {
                if (i < count) {
                    const float2 g = added(douts[i], carried);
                    dx.store(i, make_float2(unit.gamma * g.x, unit.gamma * g.y));
                    sum = add_product(sum, conjugate(before[i]), g);
                    dgamma = fmaf(xs[i].x, g.x, fmaf(xs[i].y, g.y, dgamma));
                    carried = product(back, g);
                }
            }
        }
        const Stretch sums = {product(back, sum), {dgamma, 0.f}};
        sums.store(params.sums, place.row(place.segment), layer.states, place.state);
        if (place.segment == 0) {
            store(params.dinitial, place.sequence, place.state, carried);
        }
    }

    // The gradient of the state that leaves this segment.
    __device__ __forceinline__ static float2 leaving(const BackwardParams& params,
                                                     const Place& place) {
        const Layer& layer = params.layer;
        float2 gradient = load(params.dlast, place.sequence, place.state);
#pragma unroll 4
        for (int i = layer.segments - 1; i > place.segment; --i) {
            gradient =
                Stretch::load(params.turns, place.row(i), layer.states, place.state).after(gradient);
        }
        return gradient;
    }
};

}  // namespace seqmix::lru
