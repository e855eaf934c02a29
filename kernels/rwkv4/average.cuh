// A channel's average: what is carried from step to step, and how a step moves it.
//
// Weights are exponentials of keys; only their ratios matter, and the largest is 1 wherever two are added.
#pragma once

#include "common/numeric.cuh"

namespace seqmix::rwkv4 {

// What belongs to a channel at all steps.
struct Channel {
    float decay;  // finite
    float bonus;
};

// Sums of weighted values and of weights, divided by exp(base + age decay). That is the largest weight so
// far: the one of key `base`, `age` steps ago. Were its logarithm carried as one number, each step would
// round it anew and always in one direction; so it is rounded once wherever it is used.
struct Average {
    float numerator;
    float denominator;
    float base;
    float age;

    __device__ __forceinline__ float exponent(const Channel& channel) const {
        return fmaf(age, channel.decay, base);
    }
};

// The average of nothing.
__device__ __forceinline__ Average nothing() {
    return {0.f, 0.f, __int_as_float(0xff800000), 0.f};
}

// What two weights are divided by the larger, by the logarithm of their ratio.
struct Factors {
    float old;
    float own;
};
__device__ __forceinline__ Factors factors(float logarithm) {
    const float smaller = exp2_approx(-kLog2E * fabsf(logarithm));
    return logarithm >= 0.f ? Factors{1.f, smaller} : Factors{smaller, 1.f};
}

// One step, of which each factor is at most 1.
struct Step {
    Factors read;   // of the average so far and of the step's own value, in what the step returns
    Factors carry;  // the same in the average that is carried on
    bool keeps;     // whether the largest weight is still the same
    float inverse;  // 1 / (the sum of weights that the step reads)
    float out;

    __device__ __forceinline__ Step(const Channel& channel, const Average& before, float k, float v) {
        const float apart = before.base - k;
        const float carried = fmaf(before.age + 1.f, channel.decay, apart);
        keeps = carried >= 0.f;
        carry = factors(carried);
        read = factors(fmaf(before.age, channel.decay, apart - channel.bonus));
        inverse = reciprocal_approx(fmaf(read.old, before.denominator, read.own));
        out = fmaf(read.old, before.numerator, read.own * v) * inverse;
    }
};

// Moves an average on by a step, whose factors are `carry`.
__device__ __forceinline__ void move_on(Average& average, const Factors& carry, bool keeps, float k,
                                        float v) {
    average.numerator = fmaf(carry.old, average.numerator, carry.own * v);
    average.denominator = fmaf(carry.old, average.denominator, carry.own);
    average.base = keeps ? average.base : k;
    average.age = keeps ? average.age + 1.f : 0.f;
}

// The same where nothing is read.
__device__ __forceinline__ void move_on(Average& average, const Channel& channel, float k, float v) {
    const float carried = fmaf(average.age + 1.f, channel.decay, average.base - k);
    move_on(average, factors(carried), carried >= 0.f, k, v);
}

// The average of `steps` further steps, which `later` is of alone, and of what was before.
__device__ __forceinline__ Average join(const Channel& channel, Average earlier, const Average& later,
                                        float steps) {
    earlier.age += steps;
    if (later.base == nothing().base) {
        return earlier;  // two logarithms of 0 have no difference
    }
    const float logarithm =
        fmaf(earlier.age - later.age, channel.decay, earlier.base - later.base);
    const Factors factor = factors(logarithm);
    const bool keeps = logarithm >= 0.f;
    return {fmaf(factor.old, earlier.numerator, factor.own * later.numerator),
            fmaf(factor.old, earlier.denominator, factor.own * later.denominator),
            keeps ? earlier.base : later.base, keeps ? earlier.age : later.age};
}

}  // namespace seqmix::rwkv4
