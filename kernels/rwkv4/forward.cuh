// From the first step to the last: the average of RWKV-4,
//
//     out[t] = (a[t-1] + exp(bonus + k[t]) v[t]) / (b[t-1] + exp(bonus + k[t]))
//     a[t]   = exp(decay) a[t-1] + exp(k[t]) v[t],    b[t] = exp(decay) b[t-1] + exp(k[t])
//
// or what another pass needs to know of it.
//
// grid, thread   rwkv4/place.cuh; nothing is shared
#pragma once

#include "rwkv4/average.cuh"
#include "rwkv4/params.h"
#include "rwkv4/place.cuh"

namespace seqmix::rwkv4 {

// What a walk is for.
enum class Purpose {
    Ends,    // what each segment adds to the average, from nothing
    Out,     // out and the final state
    States,  // what enters each group of steps, for the backward pass
    Turns,   // that, and what the backward pass of each segment gives to the one before
};

template <typename Element, Purpose For>
struct Forward {
    static constexpr int kThreads = rwkv4::kThreads;
    static constexpr bool kKeeps = For == Purpose::States || For == Purpose::Turns;
    static constexpr bool kReads = For == Purpose::Out || For == Purpose::Turns;

    struct Smem {};

    __device__ __forceinline__ static void run(const ForwardParams& params, Smem&) {
        const Layer& layer = params.layer;
        const Place place(layer);
        if (!place.exists()) {
            return;
        }
        const Channel channel = load_channel(layer.decay, layer.bonus, place.channel);
        Average average = For == Purpose::Ends ? nothing() : place.entering(channel);
        Cursor<Element> k(layer.k, place, place.first), v(layer.v, place, place.first);
        Cursor<Element> out(params.out, place, place.first);
        Cursor<Element> dout(params.dout, place, place.first);
        // of the gradients of numerator and denominator: what this segment adds to them, and what it leaves of
        // what follows it
        float turn[kTurnFloats] = {0.f, 0.f, 1.f};
        const int64_t slot = place.slot();
        const int steps = place.steps();
#pragma unroll 1
        for (int step = 0; step < steps; step += kGroup) {
            const int count = min(steps - step, kGroup);
            if constexpr (kKeeps) {
                store_average(params.kept, slot + step / kGroup, layer.dim, place.channel, average);
            }
            float ks[kGroup], vs[kGroup], douts[kGroup];
            k.load(ks, count);
            v.load(vs, count);
            if constexpr (For == Purpose::Turns) {
                dout.load(douts, count);
            }
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                if (i < count) {
                    if constexpr (kReads) {
                        const Step now(channel, average, ks[i], vs[i]);
                        if constexpr (For == Purpose::Out) {
                            out.store(i, now.out);
                        } else {
                            const float along = turn[2] * now.read.old * douts[i] * now.inverse;
                            turn[0] += along;
                            turn[1] = fmaf(-along, now.out, turn[1]);
                            turn[2] *= now.carry.old;
                        }
                        move_on(average, now.carry, now.keeps, ks[i], vs[i]);
                    } else {
                        move_on(average, channel, ks[i], vs[i]);
                    }
                }
            }
            k.move(kGroup);
            v.move(kGroup);
            out.move(kGroup);
            dout.move(kGroup);
        }
        if constexpr (For == Purpose::Ends) {
            store_average(layer.ends, place.row(place.segment), layer.dim, place.channel, average);
        }
        if constexpr (For == Purpose::Turns) {
            store_planes(params.turns, place.row(place.segment), layer.dim, place.channel, turn);
        }
        if (For == Purpose::Out && place.segment == layer.segments - 1) {
            store(params.final_numerator, place.sequence, place.channel, average.numerator);
            store(params.final_denominator, place.sequence, place.channel, average.denominator);
            store(params.final_exponent, place.sequence, place.channel, average.exponent(channel));
        }
    }
};

}  // namespace seqmix::rwkv4
