// The gradients of the selective scan. With g[t] the gradient of the state x[t], w[t] what is left in it
// of x[t-1], and dy the gradient of y:
//
//     w[t] = exp(delta[t] A) x[t-1],    x[t] = w[t] + delta[t] B[t] u[t]
//     g[t] = conj(exp(delta[t+1] A)) g[t+1] + dy[t] conj(C[t])
//     dA += delta[t] g[t] conj(w[t]),   dB[t] += delta[t] u[t] g[t],   dC[t] += dy[t] conj(x[t])
//     du[t] = delta[t] s + D dy[t],     ddelta[t] = r + u[t] s
//     s = sum over states of Re(g[t] conj(B[t])),   r = sum over states of Re(g[t] conj(A w[t]))
//
// grid    selective_scan/place.cuh
// block   holds the gradients of the states of Channels channels in registers and walks over the tiles
//         from the last of the scan to the first
// lane    owns Numbers of the states of each of Own channels
//
// States are computed again: from what entered a tile forward over all its parts of Depth steps, of which
// only the first states are kept, and then for each part, from the last to the first, once more with
// all that its gradients need in registers. Sums over channels are taken across a warp's lanes, then
// across its warps in shared memory, and then by selective_scan/sums.cuh: in this order always.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/pointwise.cuh"
#include "common/warp.cuh"
#include "selective_scan/block_sums.cuh"
#include "selective_scan/channels.cuh"
#include "selective_scan/coefficients.cuh"
#include "selective_scan/elements.cuh"
#include "selective_scan/gradients.cuh"
#include "selective_scan/params.h"
#include "selective_scan/place.cuh"
#include "selective_scan/state.cuh"

namespace seqmix::selective_scan {

template <typename Number, int Lanes, int Numbers, int Own, int Depth, int Channels, int RowBytes,
          Source Of>
struct Backward {
    static constexpr int kThreads = Channels / Own * Lanes;
    static constexpr int kRows = 32 / Lanes;  // channels that lie side by side in a warp

    using Share = selective_scan::Share<Number, Lanes, Numbers>;
    using Part = selective_scan::Part<Number, Lanes, Numbers, Own, Depth, Of>;
    using Lane = typename Part::Lane;
    using Sums = BlockSums<Number, Lanes, Numbers, Depth, kThreads>;
    using Tile = ElementTile<Channels, RowBytes, kThreads>;
    using Chunk = typename Tile::Chunk;
    using Bc = Coefficients<Number, Share::kStates, Channels, RowBytes, kThreads, Of>;

    static constexpr int kPieces = Share::kOwnFloats / 4;
    static constexpr int kParts = Tile::kMaxSteps / Depth;
    static_assert(Share::kPiece == 4, "states are kept 16 bytes at a time");
    static_assert(kThreads >= 2 * Channels, "a thread adds the steps of a channel");

    struct Smem {
        // Step sizes times log2(e), delta u, and dy: 0 where the sequence has no step. When the
        // gradients of a step are done, its y, s and r take their places.
        typename Tile::Floats delta;
        typename Tile::Floats x;
        typename Tile::Floats dy;
        typename Bc::Smem bc;
        float4 starts[kParts][Own][kPieces][kThreads];  // states that enter a part
        Sums sums;
        typename Tile::Slots raw_delta;
        typename Tile::Slots raw_u;
        typename Tile::Slots raw_dout;
        typename Tile::Slots raw_z;
        ChannelWeights<Channels, kThreads> weights;
    };

    // The channel in the block of this thread's own `i`.
    __device__ __forceinline__ static int channel_of(int i) {
        return (warp_of_block() * Own + i) * kRows + lane_of_warp() / Lanes;
    }

    __device__ __forceinline__ static void run(const BackwardParams& params, Smem& smem) {
        const Scan& scan = params.scan;
        const Chunk chunk(scan);
        const Share share;
        const Place place = place_of_block<Channels>(scan, chunk.steps());
        if (params.pass == kEnds && place.segment == 0) {
            return;  // it has none before it
        }
        if (place.first < place.last) {
            Bc::start(smem.bc, scan, place, place.tile(place.last - 1));
            fetch(params, smem, chunk, place, place.last - 1);
        }
        smem.weights.load(scan, place);
        Bc::load_constants(smem.bc, scan, place);

        Lane lane = {};
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            const int channel = place.channel + channel_of(i);
            const bool exists = channel_of(i) < place.channels;
            share.load(lane.a[i], scan.a, 0, channel, exists, scan.states);
            if (params.pass == kEnds) {
                continue;
            }
            if (place.segment == scan.segments - 1) {
                share.load(lane.carried[i], params.dlast_state, place.sequence, channel, exists,
                           scan.states);
            } else if (exists) {
                const int64_t row = place.row_of_segment(place.segment + 1) + channel;
                share.load(lane.carried[i], params.segments.states + row * scan.states,
                           scan.states);
            }
        }
        __syncthreads();  // weights and constants are there
        if (params.pass == kEnds) {
            carry(params, smem, chunk, share, place, lane);
        } else {
            walk(params, smem, chunk, share, place, lane);
        }
    }

    // Starts the copies of a tile's elements.
    __device__ __forceinline__ static void fetch(const BackwardParams& params, Smem& smem,
                                                 const Chunk& chunk, const Place& place,
                                                 int order) {
        const Scan& scan = params.scan;
        const int tile = place.tile(order);
        chunk.start(smem.raw_delta, scan.delta, place, tile);
        chunk.start(smem.raw_u, scan.u, place, tile);
        chunk.start(smem.raw_dout, params.dout, place, tile);
        if (scan.z.at != nullptr) {
            chunk.start(smem.raw_z, scan.z, place, tile);
        }
        commit_copies();
    }

    // Makes numbers of the tile's elements: step sizes, what enters the states, dy, B and C.
    __device__ __forceinline__ static void stage(const Scan& scan, Smem& smem, const Chunk& chunk,
                                                 const Place& place, int tile) {
        Bc::finish(smem.bc, scan, place, tile);
        if (!chunk.carries) {
            return;
        }
        const auto range = chunk.range(tile, place.start, place.end, place.channels);
        float delta[kMaxElements];
        float x[kMaxElements];
        float dy[kMaxElements];
        chunk.load(delta, smem.raw_delta);
        chunk.load(x, smem.raw_u);
        chunk.load(dy, smem.raw_dout);
        if (scan.z.at != nullptr) {
            float z[kMaxElements];
            chunk.load(z, smem.raw_z);
#pragma unroll
            for (int i = 0; i < kMaxElements; ++i) {
                dy[i] *= silu(z[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < kMaxElements; ++i) {
            if (i < chunk.elements()) {
                const float biased = delta[i] + smem.weights.delta_bias[chunk.channel_of(i)];
                const float size = scan.softplus ? softplus(biased) : biased;
                // what is not the sequence's may be anything: it must leave states and sums as they are
                const bool valid = chunk.within(range, i);
                delta[i] = valid ? size * kLog2E : 0.f;
                x[i] = valid ? size * x[i] : 0.f;
                dy[i] = valid ? dy[i] : 0.f;
            }
        }
        chunk.put(smem.delta, delta);
        chunk.put(smem.x, x);
        chunk.put(smem.dy, dy);
    }

    // What the gradients of this segment's steps leave for the one before, from zeros.
    __device__ __forceinline__ static void carry(const BackwardParams& params, Smem& smem,
                                                 const Chunk& chunk, const Share& share,
                                                 const Place& place, Lane& lane) {
        const Scan& scan = params.scan;
        CompensatedSum step_sizes[Own];
        for (int order = place.last - 1; order >= place.first; --order) {
            wait_copies<0>();  // this thread's chunks are there, before it prepares them
            stage(scan, smem, chunk, place, place.tile(order));
            __syncthreads();  // numbers of all threads are there, before they are read
            if (order > place.first) {
                Bc::start(smem.bc, scan, place, place.tile(order - 1));
                fetch(params, smem, chunk, place, order - 1);
            }
            const auto c = Bc::rows(scan.c, Side::C, channel_of(0));
            float of_tile[Own] = {};  // step sizes
            for (int at = chunk.steps() - 1; at >= 0; --at) {
                typename Share::Values c_now;
                share.read(c_now, c.of_step(smem.bc, at, at >> chunk.element_bits));
#pragma unroll
                for (int i = 0; i < Own; ++i) {
                    const float delta = smem.delta.row(channel_of(i), chunk.steps())[at];
                    const float dy = smem.dy.row(channel_of(i), chunk.steps())[at];
                    of_tile[i] += delta;
#pragma unroll
                    for (int n = 0; n < Numbers; ++n) {
                        const Number g = add_scaled(lane.carried[i][n], c_now[n], dy);
                        lane.carried[i][n] = product(conjugate(decay(lane.a[i][n], delta)), g);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < Own; ++i) {
                step_sizes[i].add(of_tile[i]);
            }
            __syncthreads();  // they have been read, before the next tile's take their places
        }
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            if (channel_of(i) < place.channels) {
                const int64_t row = place.row_of_segment(place.segment) + place.channel +
                                    channel_of(i);
                share.store(params.segments.states + row * scan.states, lane.carried[i],
                            scan.states);
                if (share.part == 0) {
                    params.segments.deltas[row] = step_sizes[i].sum;
                }
            }
        }
    }

    // All gradients of this segment.
    __device__ __forceinline__ static void walk(const BackwardParams& params, Smem& smem,
                                                const Chunk& chunk, const Share& share,
                                                const Place& place, Lane& lane) {
        const Scan& scan = params.scan;
        const int parts = chunk.steps() / Depth;
        float channel_sum = 0.f;  // of D or delta_bias, of one channel
        for (int order = place.last - 1; order >= place.first; --order) {
            const int tile = place.tile(order);
            typename Share::Values state[Own];
            load_states(params, share, place, order, tile, state);
            wait_copies<0>();  // this thread's chunks are there, before it prepares them
            stage(scan, smem, chunk, place, tile);
            __syncthreads();  // numbers of all threads are there, before they are read
            if (order > place.first) {
                Bc::start(smem.bc, scan, place, place.tile(order - 1));
            }
            const auto b = Bc::rows(scan.b, Side::B, channel_of(0));
            const auto c = Bc::rows(scan.c, Side::C, channel_of(0));
            const auto coefficient = [&](const typename Bc::Rows& of, int at) {
                return typename Part::Coefficient{
                    of.of_step(smem.bc, at, at >> chunk.element_bits), of.step_pitch};
            };
            for (int part = 0; part < parts; ++part) {
                keep(smem, part, state);
                if (part + 1 < parts) {
                    const int at = part * Depth;
                    typename Part::Rows rows[Own];
                    rows_of_part(smem, chunk, at, rows);
                    Part::advance(share, lane, state, rows, coefficient(b, at));
                }
            }
            for (int part = parts - 1; part >= 0; --part) {
                const int at = part * Depth;
                recall(smem, part, state);
                typename Part::Rows rows[Own];
                rows_of_part(smem, chunk, at, rows);
                const auto keep = [&](int t, const typename Share::Values& db,
                                      const typename Share::Values& dc) {
                    if (params.of_steps != nullptr) {
                        smem.sums.put(share, t, db, dc);
                    }
                };
                Part::differentiate(share, lane, state, rows, coefficient(b, at),
                                    coefficient(c, at), keep);
                if (params.of_steps != nullptr) {
                    __syncthreads();  // sums of all warps are there, before they are added
                    smem.sums.store(params, place, chunk.steps(), tile, at);
                }
                __syncthreads();  // sums, and y, s and r of other warps, have been read or are there
            }
            finish(params, smem, chunk, place, tile);
            if (order > place.first) {
                fetch(params, smem, chunk, place, order - 1);
            }
            __syncthreads();  // terms of D and delta_bias are there, before they are added
            channel_sum += sum_of_channel(smem, chunk);
            __syncthreads();  // they have been read, before the next tile takes their places
        }
        store_channels(params, share, place, lane, channel_sum);
    }

    // The states that enter a tile.
    __device__ __forceinline__ static void load_states(const BackwardParams& params,
                                                       const Share& share, const Place& place,
                                                       int order, int tile,
                                                       typename Share::Values (&state)[Own]) {
        const Scan& scan = params.scan;
        const int intervals = ((scan.seqlen - 1) >> scan.checkpoint_bits) + 1;
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            const int channel = place.channel + channel_of(i);
            const bool exists = channel_of(i) < place.channels;
            if (order == 0) {
                share.load(state[i], scan.initial_state, place.sequence, channel, exists,
                           scan.states);
            } else if (exists) {
                const int64_t row = (int64_t{place.batch} * intervals + tile) * scan.dim + channel;
                share.load(state[i], params.checkpoints + row * scan.states, scan.states);
            } else {
#pragma unroll
                for (int n = 0; n < Numbers; ++n) {
                    state[i][n] = {};
                }
            }
        }
    }

    // Where the channels' steps of the part lie that begins at this position.
    __device__ __forceinline__ static void rows_of_part(Smem& smem, const Chunk& chunk, int at,
                                                        typename Part::Rows (&rows)[Own]) {
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            const int channel = channel_of(i);
            rows[i] = {smem.delta.row(channel, chunk.steps()) + at,
                       smem.x.row(channel, chunk.steps()) + at,
                       smem.dy.row(channel, chunk.steps()) + at};
        }
    }

    // Keeps the states that enter a part, in places of this thread's own.
    __device__ __forceinline__ static void keep(Smem& smem, int part,
                                                const typename Share::Values (&state)[Own]) {
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            typename Share::Floats floats;
            to_floats<Number, Numbers>(floats, state[i]);
#pragma unroll
            for (int j = 0; j < kPieces; ++j) {
                smem.starts[part][i][j][thread_of_block()] = make_float4(
                    floats[4 * j], floats[4 * j + 1], floats[4 * j + 2], floats[4 * j + 3]);
            }
        }
    }

    __device__ __forceinline__ static void recall(const Smem& smem, int part,
                                                  typename Share::Values (&state)[Own]) {
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            typename Share::Floats floats;
#pragma unroll
            for (int j = 0; j < kPieces; ++j) {
                const float4 four = smem.starts[part][i][j][thread_of_block()];
                floats[4 * j] = four.x, floats[4 * j + 1] = four.y;
                floats[4 * j + 2] = four.z, floats[4 * j + 3] = four.w;
            }
            to_numbers<Number, Numbers>(state[i], floats);
        }
    }

    // The gradients of the tile's elements; the terms of D and delta_bias take the places of s and r.
    __device__ __forceinline__ static void finish(const BackwardParams& params, Smem& smem,
                                                  const Chunk& chunk, const Place& place,
                                                  int tile) {
        const Scan& scan = params.scan;
        if (!chunk.carries) {
            return;
        }
        const auto range = chunk.range(tile, place.start, place.end, place.channels);
        float u[kMaxElements];
        float dout[kMaxElements];
        float ungated[kMaxElements];  // y, and then dz
        float s[kMaxElements];        // and then du
        float r[kMaxElements];        // and then ddelta
        float of_skip[kMaxElements] = {};
        float of_bias[kMaxElements] = {};
        float delta[kMaxElements];
        float z[kMaxElements] = {};
        chunk.load(u, smem.raw_u);
        chunk.load(dout, smem.raw_dout);
        chunk.load(delta, smem.raw_delta);
        if (scan.z.at != nullptr) {
            chunk.load(z, smem.raw_z);
        }
        chunk.get(ungated, smem.delta);
        chunk.get(s, smem.x);
        chunk.get(r, smem.dy);
#pragma unroll
        for (int i = 0; i < kMaxElements; ++i) {
            if (i < chunk.elements()) {
                const int channel = chunk.channel_of(i);
                const float skip = smem.weights.skip[channel];
                const float biased = delta[i] + smem.weights.delta_bias[channel];
                const float size = scan.softplus ? softplus(biased) : biased;
                float dy = dout[i];
                if (scan.z.at != nullptr) {
                    const float gate = sigmoid(z[i]);
                    const float y = fmaf(skip, u[i], ungated[i]);
                    ungated[i] = dout[i] * y * silu_derivative(z[i], gate);
                    dy *= z[i] * gate;
                }
                const float of_size = fmaf(u[i], s[i], r[i]);
                s[i] = fmaf(size, s[i], skip * dy);
                r[i] = scan.softplus ? of_size * sigmoid(biased) : of_size;
                const bool valid = chunk.within(range, i);
                of_skip[i] = valid ? dy * u[i] : 0.f;
                of_bias[i] = valid ? r[i] : 0.f;
            }
        }
        chunk.store(params.du, s, range, place, tile);
        chunk.store(params.ddelta, r, range, place, tile);
        if (params.dz.at != nullptr) {
            chunk.store(params.dz, ungated, range, place, tile);
        }
        chunk.put(smem.x, of_skip);
        chunk.put(smem.dy, of_bias);
    }

    // The sum over a tile's steps of a term of D, for the first threads, or of delta_bias, for as many
    // that follow.
    __device__ __forceinline__ static float sum_of_channel(Smem& smem, const Chunk& chunk) {
        const int thread = thread_of_block();
        float sum = 0.f;
        if (thread < 2 * Channels) {
            auto& terms = thread < Channels ? smem.x : smem.dy;
            const float* row = terms.row(thread % Channels, chunk.steps());
            for (int at = 0; at < chunk.steps(); at += 4) {
                const float4 four = *reinterpret_cast<const float4*>(row + at);
                sum += (four.x + four.y) + (four.z + four.w);
            }
        }
        return sum;
    }

    // What the segment's steps give to the gradients of all that belongs to channels.
    __device__ __forceinline__ static void store_channels(const BackwardParams& params,
                                                          const Share& share, const Place& place,
                                                          const Lane& lane, float channel_sum) {
        const Scan& scan = params.scan;
        const int64_t first = place.row_of_segment(place.segment) + place.channel;
        const int64_t rows = int64_t{scan.sequences} * scan.segments * scan.dim;
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            const int own = channel_of(i);
            if (own >= place.channels) {
                continue;
            }
            typename Share::Values da;
#pragma unroll
            for (int n = 0; n < Numbers; ++n) {
                da[n] = scaled(lane.da[i][n], kLn2);  // step sizes were in units of log2(e)
            }
            float* to = params.of_states + (first + own) * scan.states;
            share.store(to, da, scan.states);
            if constexpr (Of == Source::Any) {
                if (scan.b.kind == kConstant) {
                    share.store(to + rows * scan.states, lane.db, scan.states);
                }
                if (scan.c.kind == kConstant) {
                    share.store(to + 2 * rows * scan.states, lane.dc, scan.states);
                }
            }
            if (place.segment == 0) {
                share.store(params.dinitial_state, lane.carried[i], place.sequence,
                            place.channel + own, true, scan.states);
            }
        }
        const int thread = thread_of_block();
        const int channel = thread % Channels;
        if (thread < 2 * Channels && channel < place.channels) {
            params.of_channels[thread / Channels * rows + first + channel] = channel_sum;
        }
    }
};

}  // namespace seqmix::selective_scan
