// The selective scan: for each channel and state
//
//     x[t] = exp(delta[t] A) x[t-1] + delta[t] B[t] u[t],    y[t] = sum over states of C[t] x[t] + D u[t]
//
// grid    selective_scan/place.cuh
// block   holds the states of Channels channels in registers and walks over the steps, a tile at a
//         time; B and C of a tile are read once for all its channels
// lane    owns Numbers of the states of each of Own channels, which Lanes neighbouring lanes share:
//         what it reads of B and C serves all of them
//
// Per element of u there is one exponential for each state: of the units that compute and of shared
// memory, the special function unit is the busiest. Softplus, gate and all that belongs to an element
// and not to a state is computed once, by the thread that copied it, before and after the steps of a
// tile.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/pointwise.cuh"
#include "common/warp.cuh"
#include "selective_scan/channels.cuh"
#include "selective_scan/coefficients.cuh"
#include "selective_scan/elements.cuh"
#include "selective_scan/params.h"
#include "selective_scan/place.cuh"
#include "selective_scan/state.cuh"

namespace seqmix::selective_scan {

template <typename Number, int Lanes, int Numbers, int Own, int Channels, int RowBytes, Source Of>
struct Forward {
    static constexpr int kThreads = Channels / Own * Lanes;
    static constexpr int kRows = 32 / Lanes;  // channels that a warp takes side by side
    static constexpr int kGroup = 4;          // steps whose sums over lanes are taken together
    static_assert(Own == 1 || Of == Source::Variable, "constant rows of B and C are read for one");
    static_assert(Channels <= kThreads, "a thread adds up the step sizes of a channel");

    using Share = selective_scan::Share<Number, Lanes, Numbers>;
    using Values = typename Share::Values;
    using Tile = ElementTile<Channels, RowBytes, kThreads>;
    using Chunk = typename Tile::Chunk;
    using Bc = Coefficients<Number, Share::kStates, Channels, RowBytes, kThreads, Of>;

    struct Smem {
        typename Tile::Floats delta;  // step sizes times log2(e), 0 where the sequence has no step
        typename Tile::Floats x;      // delta u, and once a group of steps is done their y
        typename Bc::Smem bc;
        typename Tile::Slots raw_delta;
        typename Tile::Slots raw_u[2];  // of this tile and the next
        typename Tile::Slots raw_z[2];
        ChannelWeights<Channels, kThreads> weights;
    };

    // Where this thread's chunk of the next tile lies in each tensor that is read, and that of this
    // tile in the one that is written.
    struct Cursors {
        const unsigned char* delta;
        const unsigned char* u;
        const unsigned char* z;
        unsigned char* out;
    };

    // The channel in the block of this thread's own `i`.
    __device__ __forceinline__ static int channel_of(int i) {
        return (warp_of_block() * Own + i) * kRows + lane_of_warp() / Lanes;
    }

    __device__ __forceinline__ static void run(const ForwardParams& params, Smem& smem) {
        const Scan& scan = params.scan;
        const Chunk chunk(scan);
        const Place place = place_of_block<Channels>(scan, chunk.steps());
        const Share share;
        Cursors cursors = {};
        if (place.first < place.last) {
            const int tile = place.tile(place.first);
            cursors.delta = chunk.in(scan.delta, place, tile);
            cursors.u = chunk.in(scan.u, place, tile);
            cursors.z = chunk.in(scan.z, place, tile);
            cursors.out = chunk.in(params.out, place, tile);
            fetch(smem, chunk, place, place.first, cursors);
        }
        smem.weights.load(scan, place);
        Bc::load_constants(smem.bc, scan, place);
        Values a[Own];
        Values state[Own] = {};
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            const int channel = channel_of(i);
            share.load(a[i], scan.a, 0, place.channel + channel, channel < place.channels,
                       scan.states);
            enter(params, share, place, channel, state[i]);
        }
        CompensatedSum step_sizes;  // of the channel that has this thread's number
        __syncthreads();            // weights and constants are there

        for (int order = place.first; order < place.last; ++order) {
            const int tile = place.tile(order);
            wait_copies<0>();  // this thread's chunks are there, before it prepares them
            stage(smem, chunk, place, order, tile);
            __syncthreads();  // step sizes, B and C of all threads are there, before they are read
            if (order + 1 < place.last) {
                fetch(smem, chunk, place, order + 1, cursors);
            }
            scan_tile(params, smem, chunk, share, place, tile, a, state);
            if (params.pass == kEnds && thread_of_block() < Channels) {
                const float* deltas = smem.delta.row(thread_of_block(), chunk.steps());
                for (int at = 0; at < chunk.steps(); at += 4) {
                    float four[4];
                    load_four(four, deltas + at);
                    step_sizes.add((four[0] + four[1]) + (four[2] + four[3]));
                }
            }
            __syncthreads();  // y of all threads is there, and step sizes, B and C have been read
            finish(params, smem, chunk, place, order, tile, cursors);
        }
        // once more: the loop is short of registers
        leave(params, share, place_of_block<Channels>(scan, chunk.steps()), state, step_sizes.sum);
    }

    // Starts the copies of a tile.
    __device__ __forceinline__ static void fetch(Smem& smem, const Chunk& chunk,
                                                 const Place& place, int order,
                                                 Cursors& cursors) {
        const Scan& scan = place.scan;
        const int tile = place.tile(order);
        if (chunk.carries) {
            const int count = chunk.range(tile, 0, scan.seqlen, place.channels).last;
            chunk.start(smem.raw_delta, scan.delta, cursors.delta, count);
            chunk.start(smem.raw_u[order & 1], scan.u, cursors.u, count);
            if (scan.z.at != nullptr) {
                chunk.start(smem.raw_z[order & 1], scan.z, cursors.z, count);
            }
            cursors.delta += chunk.pace(scan.delta);
            cursors.u += chunk.pace(scan.u);
            cursors.z += chunk.pace(scan.z);
        }
        Bc::start(smem.bc, scan, place, tile);
        commit_copies();
    }

    // The state of a channel that enters the segment: zeros where only its end is wanted.
    __device__ __forceinline__ static void enter(const ForwardParams& params, const Share& share,
                                                 const Place& place, int channel, Values& state) {
        const Scan& scan = place.scan;
        const bool exists = channel < place.channels;
        if (params.pass == kEnds) {
            return;
        }
        if (place.segment == 0) {
            share.load(state, scan.initial_state, place.sequence, place.channel + channel, exists,
                       scan.states);
        } else if (exists) {
            const int64_t row = place.row_of_segment(place.segment - 1) + place.channel + channel;
            share.load(state, params.segments.states + row * scan.states, scan.states);
        }
    }

    // What the segment leaves behind.
    __device__ __forceinline__ static void leave(const ForwardParams& params, const Share& share,
                                                 const Place& place, const Values (&state)[Own],
                                                 float step_sizes) {
        const Scan& scan = place.scan;
        const bool ends = params.pass == kEnds;
        if (!ends && place.segment != scan.segments - 1) {
            return;
        }
        const int64_t row = place.row_of_segment(place.segment) + place.channel;
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            const int channel = channel_of(i);
            const bool exists = channel < place.channels;
            if (!ends) {
                share.store(params.last_state, state[i], place.sequence, place.channel + channel,
                            exists, scan.states);
            } else if (exists) {
                share.store(params.segments.states + (row + channel) * scan.states, state[i],
                            scan.states);
            }
        }
        if (ends && thread_of_block() < place.channels) {
            params.segments.deltas[row + thread_of_block()] = step_sizes;
        }
    }

    // Makes numbers of the tile's elements: step sizes, what enters the states, B and C.
    __device__ __forceinline__ static void stage(Smem& smem, const Chunk& chunk,
                                                 const Place& place, int order, int tile) {
        const Scan& scan = place.scan;
        Bc::finish(smem.bc, scan, place, tile);
        if (!chunk.carries) {
            return;
        }
        const auto range = chunk.range(tile, place.start, place.end, place.channels);
        float delta[kMaxElements];
        float x[kMaxElements];
        chunk.load(delta, smem.raw_delta);
        chunk.load(x, smem.raw_u[order & 1]);
        float bias[kMaxElements];
        chunk.numbers_of(bias, smem.weights.delta_bias);
#pragma unroll
        for (int i = 0; i < kMaxElements; ++i) {
            delta[i] += bias[i];
        }
        if (scan.softplus) {
#pragma unroll
            for (int i = 0; i < kMaxElements; ++i) {
                delta[i] = softplus(delta[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < kMaxElements; ++i) {
            // what is not the sequence's may be anything: it must leave the state as it is
            const bool valid = chunk.within(range, i);
            x[i] = valid ? delta[i] * x[i] : 0.f;
            delta[i] = valid ? delta[i] * kLog2E : 0.f;
        }
        chunk.put(smem.x, x);
        chunk.put(smem.delta, delta);
    }

    // Takes the steps of a tile.
    __device__ __forceinline__ static void scan_tile(const ForwardParams& params, Smem& smem,
                                                     const Chunk& chunk, const Share& share,
                                                     const Place& place, int tile,
                                                     const Values (&a)[Own],
                                                     Values (&state)[Own]) {
        const Scan& scan = place.scan;
        const auto b = Bc::rows(scan.b, Side::B, channel_of(0));
        const auto c = Bc::rows(scan.c, Side::C, channel_of(0));
        const int steps = chunk.steps();
        const int row = Tile::row_of(channel_of(0), steps);
        static_assert(kRows == 8 || 8 % (Own * kRows) == 0, "rows of own channels lie evenly");
        const int own_pitch = Tile::row_of(kRows, steps);
        const int interval = params.checkpoints == nullptr ? steps : 1 << scan.checkpoint_bits;
        for (int first = 0; first < steps; first += interval) {
            if (params.checkpoints != nullptr) {
                const int step = scan.reverse ? steps - 1 - first : first;
                checkpoint(params, share, place, state, tile * steps + step);
            }
            for (int at = first; at < first + interval; at += kGroup) {
                const int chunks = at >> chunk.element_bits;
                const auto group = [&](auto with_y) {
                    scan_group<with_y.kYes>(share, state, a, smem.delta.at + row + at,
                                            smem.x.at + row + at, own_pitch,
                                            b.of_step(smem.bc, at, chunks), b.step_pitch,
                                            c.of_step(smem.bc, at, chunks), c.step_pitch);
                };
                if (params.pass == kEnds) {
                    group(WithY<false>{});
                } else {
                    group(WithY<true>{});
                }
            }
        }
    }

    // Whether steps give y, or move the states only.
    template <bool Yes>
    struct WithY {
        static constexpr bool kYes = Yes;
    };

    // Takes four steps, with rows of B and C, and leaves their y without skip in place of x.
    template <bool GivesY>
    __device__ __forceinline__ static void scan_group(const Share& share, Values (&state)[Own],
                                                      const Values (&a)[Own], const float* deltas,
                                                      float* xs, int own_pitch, const float* b,
                                                      int b_pitch, const float* c, int c_pitch) {
        float delta[Own][kGroup];
        float x[Own][kGroup];
        float y[Own][kGroup] = {};
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            load_four(delta[i], deltas + i * own_pitch);
            load_four(x[i], xs + i * own_pitch);
        }
#pragma unroll
        for (int step = 0; step < kGroup; ++step) {
            Values b_now;
            Values c_now;
            share.read(b_now, b + step * b_pitch);
            if constexpr (GivesY) {
                share.read(c_now, c + step * c_pitch);
            }
#pragma unroll
            for (int i = 0; i < Own; ++i) {
#pragma unroll
                for (int n = 0; n < Numbers; ++n) {
                    const Number entering = scaled(b_now[n], x[i][step]);
                    state[i][n] = add_product(entering, decay(a[i][n], delta[i][step]), state[i][n]);
                    if constexpr (GivesY) {
                        y[i][step] = add_inner(y[i][step], c_now[n], state[i][n]);
                    }
                }
            }
        }
        if constexpr (GivesY) {
#pragma unroll
            for (int i = 0; i < Own; ++i) {
                sum_lanes<Lanes / 2, 1>(y[i], share.lane);
            }
            __syncwarp();  // all lanes have read x, before y takes its place
            constexpr int kWriters = Lanes / kGroup;  // lanes that hold the same sum
            if (share.part % kWriters == 0) {
#pragma unroll
                for (int i = 0; i < Own; ++i) {
                    xs[i * own_pitch + share.part / kWriters] = y[i][0];
                }
            }
        }
    }

    // Keeps the states that enter this step of the tensor, unless the scan begins near it.
    __device__ __forceinline__ static void checkpoint(const ForwardParams& params,
                                                      const Share& share, const Place& place,
                                                      const Values (&state)[Own], int step) {
        const Scan& scan = params.scan;
        const int interval = step >> scan.checkpoint_bits;
        const int first = place.start >> scan.checkpoint_bits;
        const int last = (place.end - 1) >> scan.checkpoint_bits;
        // the first interval of a sequence begins with its initial state, and may be another's last
        const bool kept = scan.reverse ? interval >= first && interval < last
                                        : interval > first && interval <= last;
        if (!kept) {
            return;
        }
        const int intervals = ((scan.seqlen - 1) >> scan.checkpoint_bits) + 1;
        const int64_t row = (int64_t{place.batch} * intervals + interval) * scan.dim;
#pragma unroll
        for (int i = 0; i < Own; ++i) {
            if (channel_of(i) < place.channels) {
                const int64_t at = row + place.channel + channel_of(i);
                share.store(params.checkpoints + at * scan.states, state[i], scan.states);
            }
        }
    }

    // Skip and gate, and the tile's results.
    __device__ __forceinline__ static void finish(const ForwardParams& params, Smem& smem,
                                                  const Chunk& chunk, const Place& place,
                                                  int order, int tile, Cursors& cursors) {
        const Scan& scan = params.scan;
        if (!chunk.carries || params.out.at == nullptr) {
            return;
        }
        unsigned char* to = cursors.out;
        cursors.out += chunk.pace(params.out);
        const auto range = chunk.range(tile, place.start, place.end, place.channels);
        float y[kMaxElements];
        float u[kMaxElements];
        chunk.get(y, smem.x);
        chunk.load(u, smem.raw_u[order & 1]);
        float skip[kMaxElements];
        chunk.numbers_of(skip, smem.weights.skip);
#pragma unroll
        for (int i = 0; i < kMaxElements; ++i) {
            y[i] = fmaf(skip[i], u[i], y[i]);
        }
        if (params.ungated.at != nullptr) {
            chunk.store(params.ungated, y, range, place, tile);
        }
        if (scan.z.at != nullptr) {
            float z[kMaxElements];
            chunk.load(z, smem.raw_z[order & 1]);
#pragma unroll
            for (int i = 0; i < kMaxElements; ++i) {
                y[i] *= silu(z[i]);
            }
        }
        chunk.store(params.out, to, y, range);
    }
};

}  // namespace seqmix::selective_scan
