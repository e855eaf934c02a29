// The gradients of a few steps, the states of which are all in registers: a part.
//
// A lane owns Numbers of the states of each of Own channels, and reads B and C once for all of them. What it
// adds up stays in its registers, but for sums over the channel's states and over channels.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "selective_scan/coefficients.cuh"
#include "selective_scan/number.cuh"
#include "selective_scan/state.cuh"

namespace seqmix::selective_scan {

template <typename Number, int Lanes, int Numbers, int Own, int Depth, Source Of>
struct Part {
    using Share = selective_scan::Share<Number, Lanes, Numbers>;
    using Values = typename Share::Values;

    static_assert(Depth == 2 || Depth == 4, "a part is read at once");
    static_assert(Of == Source::Variable || Own == 1, "registers for constants' sums");

    // What a lane keeps from part to part.
    struct Lane {
        Values a[Own];
        Values carried[Own];  // the gradient that enters the next step
        Values da[Own];
        Values db;  // of constant coefficients
        Values dc;
    };

    // Where a channel's numbers of the part's steps lie. In the end y, s and r take their places.
    struct Rows {
        float* delta;  // step sizes times log2(e)
        float* x;      // delta u
        float* dy;
    };

    // The numbers of a coefficient's steps, `pitch` floats apart.
    struct Coefficient {
        const float* at;
        int pitch;
    };

    using Steps = float[Depth];

    __device__ __forceinline__ static void read_steps(Steps& x, const float* row) {
        if constexpr (Depth == 4) {
            const float4 four = *reinterpret_cast<const float4*>(row);
            x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        } else {
            const float2 two = *reinterpret_cast<const float2*>(row);
            x[0] = two.x, x[1] = two.y;
        }
    }

    // Takes the steps.
    __device__ __forceinline__ static void advance(const Share& share, const Lane& lane,
                                                   Values (&state)[Own], const Rows (&rows)[Own],
                                                   const Coefficient& b) {
        Steps delta[Own];
        Steps x[Own];
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            read_steps(delta[i], rows[i].delta);
            read_steps(x[i], rows[i].x);
        }
#pragma unroll
        for (int t = 0; t < Depth; ++t) {
            Values b_now;
            share.read(b_now, b.at + t * b.pitch);
#pragma unroll
            for (int i = 0; i < Own; ++i) {
#pragma unroll
                for (int n = 0; n < Numbers; ++n) {
                    const Number entering = scaled(b_now[n], x[i][t]);
                    state[i][n] =
                        add_product(entering, decay(lane.a[i][n], delta[i][t]), state[i][n]);
                }
            }
        }
    }

    // The gradients of the steps, from the state that enters the part. `keep(t, db, dc)` takes this lane's
    // sums of dB and dC of a step.
    template <typename Keep>
    __device__ __forceinline__ static void differentiate(const Share& share, Lane& lane,
                                                         Values (&state)[Own],
                                                         const Rows (&rows)[Own],
                                                         const Coefficient& b,
                                                         const Coefficient& c, const Keep& keep) {
        Steps delta[Own];
        Steps x[Own];
        Steps dy[Own];
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            read_steps(delta[i], rows[i].delta);
            read_steps(x[i], rows[i].x);
            read_steps(dy[i], rows[i].dy);
        }
        // forward, with all that the way back needs
        Number decays[Depth][Own][Numbers];
        Number left[Depth][Own][Numbers];  // w
        Steps y[Own] = {};
#pragma unroll
        for (int t = 0; t < Depth; ++t) {
            Values b_now;
            Values c_now;
            share.read(b_now, b.at + t * b.pitch);
            share.read(c_now, c.at + t * c.pitch);
#pragma unroll
            for (int i = 0; i < Own; ++i) {
#pragma unroll
                for (int n = 0; n < Numbers; ++n) {
                    decays[t][i][n] = decay(lane.a[i][n], delta[i][t]);
                    left[t][i][n] = product(decays[t][i][n], state[i][n]);
                    state[i][n] = add_scaled(left[t][i][n], b_now[n], x[i][t]);
                    y[i][t] = add_inner(y[i][t], c_now[n], state[i][n]);
                }
            }
        }
        // and back
        Steps r[Own] = {};
        Steps s[Own] = {};
#pragma unroll
        for (int t = Depth - 1; t >= 0; --t) {
            Values b_now;
            Values c_now;
            share.read(b_now, b.at + t * b.pitch);
            share.read(c_now, c.at + t * c.pitch);
            Values db = {};
            Values dc = {};
#pragma unroll
            for (int i = 0; i < Own; ++i) {
#pragma unroll
                for (int n = 0; n < Numbers; ++n) {
                    const Number g = add_scaled(lane.carried[i][n], c_now[n], dy[i][t]);
                    const Number w = left[t][i][n];
                    const Number of_exponent = product(g, conjugate(w));
                    s[i][t] = add_inner(s[i][t], g, b_now[n]);
                    r[i][t] = add_inner(r[i][t], of_exponent, lane.a[i][n]);
                    lane.da[i][n] = add_scaled(lane.da[i][n], of_exponent, delta[i][t]);
                    db[n] = add_scaled(db[n], g, x[i][t]);
                    dc[n] = add_scaled(dc[n], add_scaled(w, b_now[n], x[i][t]), dy[i][t]);
                    lane.carried[i][n] = product(conjugate(decays[t][i][n]), g);
                }
            }
            if constexpr (Of == Source::Any) {
#pragma unroll
                for (int n = 0; n < Numbers; ++n) {
                    lane.db[n] = add_scaled(lane.db[n], db[n], 1.f);
                    lane.dc[n] = add_scaled(lane.dc[n], dc[n], 1.f);
                }
            }
            keep(t, db, dc);
        }
        __syncwarp();  // all lanes of a channel have read its steps, before results take their places
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            put_sum(share, rows[i].delta, y[i]);
            put_sum(share, rows[i].x, s[i]);
            put_sum(share, rows[i].dy, r[i]);
        }
    }

    // Writes the sums of the channel's lanes, a step each.
    __device__ __forceinline__ static void put_sum(const Share& share, float* to, Steps& x) {
        sum_lanes<Lanes / 2, 1>(x, share.lane);
        constexpr int kWriters = Lanes / Depth;  // lanes that hold the same sum
        if (share.part % kWriters == 0) {
            to[share.part / kWriters] = x[0];
        }
    }
};

}  // namespace seqmix::selective_scan
