// From the first step to the last: the linear recurrent unit,
//
//     h[t] = exp(a) h[t-1] + gamma x[t]
//
// or what another pass needs to know of it.
//
// grid, thread   lru/place.cuh; nothing is shared
#pragma once

#include "lru/number.cuh"
#include "lru/params.h"
#include "lru/place.cuh"

namespace seqmix::lru {

// What a walk is for.
enum class Purpose {
    Ends,    // what each segment does to the state that enters it
    Out,     // the states after all steps, and the last one
    States,  // what enters each group of steps, for the backward pass
    Turns,   // that, and what each segment does to the gradient that comes from the one after
};

template <typename Element, Purpose For>
struct Forward {
    static constexpr int kThreads = lru::kThreads;
    static constexpr bool kKeeps = For == Purpose::States || For == Purpose::Turns;

    struct Smem {};

    __device__ __forceinline__ static void run(const ForwardParams& params, Smem&) {
        const Layer& layer = params.layer;
        const Place place(layer);
        if (!place.exists()) {
            return;
        }
        const Unit unit(layer.a, layer.gamma, place.state);
        float2 state = For == Purpose::Ends ? make_float2(0.f, 0.f) : place.entering();
        Cursor<Element> x(layer.x, place, place.first), out(params.out, place, place.first);
        Cursor<Element> dout(params.dout, place, place.first);
        // the segment's factor, and in it the gradient that its outputs add before its first step
        Stretch stretch = {{0.f, 0.f}, {1.f, 0.f}};
        const float2 along = For == Purpose::Turns ? conjugate(unit.lambda) : unit.lambda;
        const int64_t slot = place.slot();
        const int steps = place.steps();
#pragma unroll 1
        for (int step = 0; step < steps; step += kGroup) {
            const int count = min(steps - step, kGroup);
            if constexpr (kKeeps) {
                params.kept[(slot + step / kGroup) * layer.states + place.state] = state;
            }
            float2 xs[kGroup], douts[kGroup];
            x.load(xs, count);
            if constexpr (For == Purpose::Turns) {
                dout.load(douts, count);
            }
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                if (i < count) {
                    state = unit.after(state, xs[i]);
                    if constexpr (For == Purpose::Out) {
                        out.store(i, state);
                    }
                    if constexpr (For == Purpose::Ends || For == Purpose::Turns) {
                        stretch.factor = product(stretch.factor, along);
                    }
                    if constexpr (For == Purpose::Turns) {
                        stretch.added = add_product(stretch.added, stretch.factor, douts[i]);
                    }
                }
            }
            x.move(kGroup);
            out.move(kGroup);
            dout.move(kGroup);
        }
        if constexpr (For == Purpose::Ends) {
            stretch.added = state;
            stretch.store(layer.ends, place.row(place.segment), layer.states, place.state);
        }
        if constexpr (For == Purpose::Turns) {
            stretch.store(params.turns, place.row(place.segment), layer.states, place.state);
        }
        if (For == Purpose::Out && place.segment == layer.segments - 1) {
            store(params.last, place.sequence, place.state, state);
        }
    }
};

}  // namespace seqmix::lru
