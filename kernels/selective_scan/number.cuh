// What states consist of: real numbers, or complex ones as a real and an imaginary part side by side.
//
// A complex state stands for itself and its conjugate: y = 2 Re(C x). C is therefore kept as
// 2 conj(C), so that y is the inner product of C and the state as vectors of two, as it is for real
// numbers.
#pragma once

#include <cstdint>

#include "common/numeric.cuh"

namespace seqmix::selective_scan {

using Real = float;

struct Complex {
    float re;
    float im;
};

template <typename Number>
constexpr int kFloats = sizeof(Number) / sizeof(float);

// What the floats of C are multiplied with, and so those of its gradient.
template <typename Number>
__device__ __forceinline__ float readout(int at) {
    return kFloats<Number> == 1 ? 1.f : at % 2 == 0 ? 2.f : -2.f;
}

// exp(delta A). Step sizes are kept in units that make a power of two of the exponential: delta log2(e).
__device__ __forceinline__ Real decay(Real a, float delta) { return exp2_approx(a * delta); }

__device__ __forceinline__ Complex decay(Complex a, float delta) {
    constexpr float kTwoPi = 6.28318530717959f;
    const float size = exp2_approx(a.re * delta);
    const float delta_turns = delta * (kLn2 / kTwoPi);
    // sin and cos are accurate within half a turn of 0; the fma keeps the fraction's last bits
    const float whole = rintf(a.im * delta_turns);
    const float angle = kTwoPi * fmaf(a.im, delta_turns, -whole);
    return {size * cos_approx(angle), size * sin_approx(angle)};
}

__device__ __forceinline__ Real scaled(Real a, float factor) { return a * factor; }
__device__ __forceinline__ Complex scaled(Complex a, float factor) {
    return {a.re * factor, a.im * factor};
}

// sum + a factor
__device__ __forceinline__ Real add_scaled(Real sum, Real a, float factor) {
    return fmaf(a, factor, sum);
}
__device__ __forceinline__ Complex add_scaled(Complex sum, Complex a, float factor) {
    return {fmaf(a.re, factor, sum.re), fmaf(a.im, factor, sum.im)};
}

__device__ __forceinline__ Real product(Real a, Real b) { return a * b; }
__device__ __forceinline__ Complex product(Complex a, Complex b) {
    return {fmaf(a.re, b.re, -a.im * b.im), fmaf(a.re, b.im, a.im * b.re)};
}

// sum + a b
__device__ __forceinline__ Real add_product(Real sum, Real a, Real b) { return fmaf(a, b, sum); }
__device__ __forceinline__ Complex add_product(Complex sum, Complex a, Complex b) {
    return {fmaf(a.re, b.re, fmaf(-a.im, b.im, sum.re)),
            fmaf(a.re, b.im, fmaf(a.im, b.re, sum.im))};
}

__device__ __forceinline__ Real conjugate(Real a) { return a; }
__device__ __forceinline__ Complex conjugate(Complex a) { return {a.re, -a.im}; }

// sum + Re(a conj(b)): the inner product as vectors.
__device__ __forceinline__ float add_inner(float sum, Real a, Real b) { return fmaf(a, b, sum); }
__device__ __forceinline__ float add_inner(float sum, Complex a, Complex b) {
    return fmaf(a.re, b.re, fmaf(a.im, b.im, sum));
}

// The numbers that these floats are.
template <typename Number, int Count>
__device__ __forceinline__ void to_numbers(Number (&numbers)[Count],
                                           const float (&floats)[Count * kFloats<Number>]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
        if constexpr (kFloats<Number> == 1) {
            numbers[i] = floats[i];
        } else {
            numbers[i] = {floats[2 * i], floats[2 * i + 1]};
        }
    }
}

template <typename Number, int Count>
__device__ __forceinline__ void to_floats(float (&floats)[Count * kFloats<Number>],
                                          const Number (&numbers)[Count]) {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
        if constexpr (kFloats<Number> == 1) {
            floats[i] = numbers[i];
        } else {
            floats[2 * i] = numbers[i].re;
            floats[2 * i + 1] = numbers[i].im;
        }
    }
}

}  // namespace seqmix::selective_scan
