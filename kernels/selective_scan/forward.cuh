// The selective scan: for each channel and state
//
//     x[t] = exp(delta[t] A) x[t-1] + delta[t] B[t] u[t],    y[t] = sum over states of C[t] x[t] + D u[t]
//
// grid    selective_scan/place.cuh
// block   holds the states of Channels channels in registers and walks over the steps, a tile at a
//         time; B and C of a tile are read once for all its channels
// lane    owns Numbers of the states of one channel, which Lanes neighbouring lanes share
//
// Per element of u there is one exponential for each state, and no other work as dear: the special
// function unit bounds the kernel. Softplus, gate and all that belongs to an element and not to a
// state is computed once, by the thread that copied it, before and after the steps of a tile.
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

template <typename Number, int Lanes, int Numbers, int Channels, int RowBytes, Source Of>
struct Forward {
    static constexpr int kThreads = Channels * Lanes;
    static constexpr int kGroup = 4;  // steps whose sums over lanes are taken together

    using Share = selective_scan::Share<Number, Lanes, Numbers>;
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

    // The channel of this thread in the block.
    __device__ __forceinline__ static int own_channel() { return thread_of_block() / Lanes; }

    __device__ __forceinline__ static void run(const ForwardParams& params, Smem& smem) {
        const Scan& scan = params.scan;
        const Chunk chunk(scan);
        const Place place = place_of_block<Channels>(scan, chunk.steps());
        const Share share;
        if (place.first < place.last) {
            fetch(smem, chunk, place, place.first);
        }
        smem.weights.load(scan, place);
        Bc::load_constants(smem.bc, scan, place);
        typename Share::Values a;
        share.load(a, scan.a, 0, place.channel + own_channel(), own_channel() < place.channels,
                   scan.states);
        typename Share::Values state = {};
        enter(params, share, place, state);
        CompensatedSum step_sizes;  // of this lane's part of the steps
        __syncthreads();            // weights and constants are there

        for (int order = place.first; order < place.last; ++order) {
            const int tile = place.tile(order);
            wait_copies<0>();
            stage(smem, chunk, place, order, tile);
            __syncthreads();  // step sizes, B and C of all threads are there, before they are read
            if (order + 1 < place.last) {
                fetch(smem, chunk, place, order + 1);
            }
            scan_tile(params, smem, chunk, share, place, tile, a, state);
            if (params.pass == kEnds) {
                const float* deltas = smem.delta.row(own_channel(), chunk.steps());
                float sum = 0.f;
                for (int at = share.part; at < chunk.steps(); at += Lanes) {
                    sum += deltas[at];
                }
                step_sizes.add(sum);
            }
            __syncthreads();  // y of all threads is there, and step sizes, B and C have been read
            finish(params, smem, chunk, place, order, tile);
        }
        // once more: the loop is short of registers
        leave(params, share, place_of_block<Channels>(scan, chunk.steps()), state, step_sizes.sum);
    }

    // Starts the copies of a tile.
    __device__ __forceinline__ static void fetch(Smem& smem, const Chunk& chunk,
                                                 const Place& place, int order) {
        const Scan& scan = place.scan;
        const int tile = place.tile(order);
        chunk.start(smem.raw_delta, scan.delta, place, tile);
        chunk.start(smem.raw_u[order % 2], scan.u, place, tile);
        if (scan.z.at != nullptr) {
            chunk.start(smem.raw_z[order % 2], scan.z, place, tile);
        }
        Bc::start(smem.bc, scan, place, tile);
        commit_copies();
    }

    // The state that enters the segment: zeros where only its end is wanted.
    __device__ __forceinline__ static void enter(const ForwardParams& params, const Share& share,
                                                 const Place& place,
                                                 typename Share::Values& state) {
        const Scan& scan = place.scan;
        const int channel = place.channel + own_channel();
        const bool exists = own_channel() < place.channels;
        if (params.pass == kEnds) {
            return;
        }
        if (place.segment == 0) {
            share.load(state, scan.initial_state, place.sequence, channel, exists, scan.states);
        } else if (exists) {
            const int64_t row = place.row_of_segment(place.segment - 1) + channel;
            share.load(state, params.segments.states + row * scan.states, scan.states);
        }
    }

    // What the segment leaves behind.
    __device__ __forceinline__ static void leave(const ForwardParams& params, const Share& share,
                                                 const Place& place,
                                                 const typename Share::Values& state,
                                                 float step_sizes) {
        const Scan& scan = place.scan;
        const int channel = place.channel + own_channel();
        const bool exists = own_channel() < place.channels;
        if (params.pass == kEnds) {
            float sum[1] = {step_sizes};
            sum_lanes<Lanes / 2, 1>(sum, share.lane);
            if (exists) {
                const int64_t row = place.row_of_segment(place.segment) + channel;
                share.store(params.segments.states + row * scan.states, state, scan.states);
                if (share.part == 0) {
                    params.segments.deltas[row] = sum[0];
                }
            }
        } else if (place.segment == scan.segments - 1) {
            share.store(params.last_state, state, place.sequence, channel, exists, scan.states);
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
        chunk.load(x, smem.raw_u[order % 2]);
#pragma unroll
        for (int i = 0; i < kMaxElements; ++i) {
            if (i < chunk.elements()) {
                const float biased = delta[i] + smem.weights.delta_bias[chunk.channel_of(i)];
                const float size = scan.softplus ? softplus(biased) : biased;
                // what is not the sequence's may be anything: it must leave the state as it is
                const bool valid = chunk.within(range, i);
                delta[i] = valid ? size * kLog2E : 0.f;
                x[i] = valid ? size * x[i] : 0.f;
            }
        }
        chunk.put(smem.delta, delta);
        chunk.put(smem.x, x);
    }

    // Takes the steps of a tile.
    __device__ __forceinline__ static void scan_tile(const ForwardParams& params, Smem& smem,
                                                     const Chunk& chunk, const Share& share,
                                                     const Place& place, int tile,
                                                     const typename Share::Values& a,
                                                     typename Share::Values& state) {
        const Scan& scan = place.scan;
        const auto b = Bc::rows(scan.b, Side::B, own_channel());
        const auto c = Bc::rows(scan.c, Side::C, own_channel());
        float* deltas = smem.delta.row(own_channel(), chunk.steps());
        float* xs = smem.x.row(own_channel(), chunk.steps());
        for (int at = 0; at < chunk.steps(); at += kGroup) {
            if ((at & ((1 << scan.checkpoint_bits) - 1)) == 0 && params.checkpoints != nullptr) {
                const int step = scan.reverse ? chunk.steps() - 1 - at : at;
                checkpoint(params, share, place, state, tile * chunk.steps() + step);
            }
            const int chunks = at >> chunk.element_bits;
            scan_group(share, state, a, deltas + at, xs + at, b.of_step(smem.bc, at, chunks),
                       b.step_pitch, c.of_step(smem.bc, at, chunks), c.step_pitch);
        }
    }

    // Takes four steps, with rows of B and C, and leaves their y without skip in place of x.
    __device__ __forceinline__ static void scan_group(const Share& share,
                                                      typename Share::Values& state,
                                                      const typename Share::Values& a,
                                                      const float* deltas, float* xs,
                                                      const float* b, int b_pitch, const float* c,
                                                      int c_pitch) {
        const float4 delta4 = *reinterpret_cast<const float4*>(deltas);
        const float4 x4 = *reinterpret_cast<const float4*>(xs);
        const float delta[kGroup] = {delta4.x, delta4.y, delta4.z, delta4.w};
        const float x[kGroup] = {x4.x, x4.y, x4.z, x4.w};
        float y[kGroup] = {};
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
            typename Share::Values b_now;
            typename Share::Values c_now;
            share.read(b_now, b + i * b_pitch);
            share.read(c_now, c + i * c_pitch);
#pragma unroll
            for (int n = 0; n < Numbers; ++n) {
                const Number entering = scaled(b_now[n], x[i]);
                state[n] = add_product(entering, decay(a[n], delta[i]), state[n]);
                y[i] = add_inner(y[i], c_now[n], state[n]);
            }
        }
        sum_lanes<Lanes / 2, 1>(y, share.lane);
        __syncwarp();  // all lanes have read x, before y takes its place
        constexpr int kWriters = Lanes / kGroup;  // lanes that hold the same sum
        if (share.part % kWriters == 0) {
            xs[share.part / kWriters] = y[0];
        }
    }

    // Keeps the state that enters this step of the tensor, unless the scan begins near it.
    __device__ __forceinline__ static void checkpoint(const ForwardParams& params,
                                                      const Share& share, const Place& place,
                                                      const typename Share::Values& state,
                                                      int step) {
        const Scan& scan = params.scan;
        const int interval = step >> scan.checkpoint_bits;
        const int first = place.start >> scan.checkpoint_bits;
        const int last = (place.end - 1) >> scan.checkpoint_bits;
        // the first interval of a sequence begins with its initial state, and may be another's last
        const bool kept = scan.reverse ? interval >= first && interval < last
                                        : interval > first && interval <= last;
        if (kept && own_channel() < place.channels) {
            const int channel = place.channel + own_channel();
            const int intervals = ((scan.seqlen - 1) >> scan.checkpoint_bits) + 1;
            const int64_t row = (int64_t{place.batch} * intervals + interval) * scan.dim + channel;
            share.store(params.checkpoints + row * scan.states, state, scan.states);
        }
    }

    // Skip and gate, and the tile's results.
    __device__ __forceinline__ static void finish(const ForwardParams& params, Smem& smem,
                                                  const Chunk& chunk, const Place& place,
                                                  int order, int tile) {
        const Scan& scan = params.scan;
        if (!chunk.carries || params.out.at == nullptr) {
            return;
        }
        const auto range = chunk.range(tile, place.start, place.end, place.channels);
        float y[kMaxElements];
        float u[kMaxElements];
        chunk.get(y, smem.x);
        chunk.load(u, smem.raw_u[order % 2]);
#pragma unroll
        for (int i = 0; i < kMaxElements; ++i) {
            if (i < chunk.elements()) {
                y[i] = fmaf(smem.weights.skip[chunk.channel_of(i)], u[i], y[i]);
            }
        }
        if (params.ungated.at != nullptr) {
            chunk.store(params.ungated, y, range, place, tile);
        }
        if (scan.z.at != nullptr) {
            float z[kMaxElements];
            chunk.load(z, smem.raw_z[order % 2]);
#pragma unroll
            for (int i = 0; i < kMaxElements; ++i) {
                y[i] *= silu(z[i]);
            }
        }
        chunk.store(params.out, y, range, place, tile);
    }
};

}  // namespace seqmix::selective_scan
