// From the last step to the first: all gradients of RWKV-4's average.
//
// grid, thread   rwkv4/place.cuh; nothing is shared
//
// The gradients of numerator and denominator are carried at the exponent that these have before a step. The
// averages of a group of steps are computed again from the one that was kept before it, and stay in
// registers: a recurrence that ran backwards would divide by decays.
#pragma once

#include "rwkv4/average.cuh"
#include "rwkv4/params.h"
#include "rwkv4/place.cuh"

namespace seqmix::rwkv4 {

template <typename Element>
struct Backward {
    static constexpr int kThreads = rwkv4::kThreads;

    struct Smem {};

    // What a step's gradients are made of.
    struct Taken {
        Factors carry;
        float numerator;  // before the step
        float denominator;
        // gradients along out: of the average before, and of the step's own key and value
        float of_numerator;
        float of_denominator;
        float of_k;
        float of_v;
    };

    __device__ __forceinline__ static void run(const BackwardParams& params, Smem&) {
        const Layer& layer = params.layer;
        const Place place(layer);
        if (!place.exists()) {
            return;
        }
        const Channel channel = load_channel(layer.decay, layer.bonus, place.channel);
        float da, db;  // of the numerator and of the denominator
        leave(params, place, da, db);
        float sums[kSumFloats] = {};  // of the decay's gradient, and of the bonus's
        const int64_t slot = place.slot();
        const int groups = (place.steps() + kGroup - 1) / kGroup;
        const int end = place.first + groups * kGroup;
        Cursor<Element> k(layer.k, place, end), v(layer.v, place, end);
        Cursor<Element> dout(params.dout, place, end);
        Cursor<Element> dk(params.dk, place, end), dv(params.dv, place, end);
#pragma unroll 1
        for (int group = groups - 1; group >= 0; --group) {
            k.move(-kGroup);
            v.move(-kGroup);
            dout.move(-kGroup);
            dk.move(-kGroup);
            dv.move(-kGroup);
            const int count = min(place.steps() - group * kGroup, kGroup);
            Average average = load_average(params.kept, slot + group, layer.dim, place.channel);
            float ks[kGroup], vs[kGroup], douts[kGroup];
            k.load(ks, count);
            v.load(vs, count);
            dout.load(douts, count);
            Taken taken[kGroup];
#pragma unroll
            for (int i = 0; i < kGroup; ++i) {
                if (i < count) {
                    const Step now(channel, average, ks[i], vs[i]);
                    const float of_numerator = douts[i] * now.inverse;
                    const float of_denominator = -of_numerator * now.out;
                    taken[i].carry = now.carry;
                    taken[i].numerator = average.numerator;
                    taken[i].denominator = average.denominator;
                    taken[i].of_numerator = now.read.old * of_numerator;
                    taken[i].of_denominator = now.read.old * of_denominator;
                    taken[i].of_k = now.read.own * (of_numerator * (vs[i] - now.out));
                    taken[i].of_v = now.read.own * of_numerator;
                    move_on(average, now.carry, now.keeps, ks[i], vs[i]);
                }
            }
#pragma unroll
            for (int i = kGroup - 1; i >= 0; --i) {
                if (i < count) {
                    const Taken& at = taken[i];
                    sums[0] = fmaf(at.carry.old, fmaf(da, at.numerator, db * at.denominator), sums[0]);
                    sums[1] += at.of_k;
                    dk.store(i, fmaf(at.carry.own, fmaf(da, vs[i], db), at.of_k));
                    dv.store(i, fmaf(at.carry.own, da, at.of_v));
                    da = fmaf(at.carry.old, da, at.of_numerator);
                    db = fmaf(at.carry.old, db, at.of_denominator);
                }
            }
        }
        store_planes(params.sums, place.row(place.segment), layer.dim, place.channel, sums);
        if (place.segment == 0) {
            store(params.dinitial_numerator, place.sequence, place.channel, da);
            store(params.dinitial_denominator, place.sequence, place.channel, db);
        }
    }

    // The gradients of the average that leaves this segment.
    __device__ __forceinline__ static void leave(const BackwardParams& params, const Place& place,
                                                 float& da, float& db) {
        const Layer& layer = params.layer;
        da = load(params.dfinal_numerator, place.sequence, place.channel, 0.f);
        db = load(params.dfinal_denominator, place.sequence, place.channel, 0.f);
#pragma unroll 4
        for (int i = layer.segments - 1; i > place.segment; --i) {
            float turn[kTurnFloats];
            load_planes(turn, params.turns, place.row(i), layer.dim, place.channel);
            da = fmaf(turn[2], da, turn[0]);
            db = fmaf(turn[2], db, turn[1]);
        }
    }
};

}  // namespace seqmix::rwkv4
