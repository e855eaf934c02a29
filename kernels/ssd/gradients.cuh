// The gradients of one chunk: a block takes the heads of a group one after the other, slice by
// slice, and adds up their parts of dB and dC.
//
// With L the decays between steps, E those from the chunk's start to after each step and F those from
// there to its end, S the state before the chunk and G the gradient of the state after it:
//
//     DX = dy x^T       K = (C B^T) L       Q = DX L dt'
//     y  = E C S^T + K dt' x + D x                     dz  = dout y silu'(z)
//     v  = K^T dy + F B G^T                            dx  = dt' v + D dy
//     dC += E dy S + Q B                               dB += F dt' x G + Q^T C
//
// grid    x: parts of groups, and of the columns of dB and dC where registers do not hold all;
//         y: chunks; z: sequences
// warp    owns 16 rows of each product and half of its columns
// lane    holds two neighbours in two rows of each 16x8 part (common/mma.cuh)
//
// A factor of a row is applied to a product in f32, before it is added to what was there: operands
// are rounded once.
#pragma once

#include <cstdint>

#include "common/async_copy.cuh"
#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/pointwise.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "ssd/decay_gradient.cuh"
#include "ssd/params.h"
#include "ssd/place.cuh"
#include "ssd/products.cuh"
#include "ssd/skip_gradient.cuh"
#include "ssd/steps.cuh"

namespace seqmix::ssd {

template <typename Element_, int Size, int Columns>
struct Gradients {
    using Element = Element_;

    static constexpr int kChunk = seqmix::ssd::kChunk<Element>;
    static constexpr int kSlice = seqmix::ssd::kSlice<Element>;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    static constexpr int kRowWarps = kChunk / 16;
    static constexpr int kWarps = 2 * kRowWarps;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kSteps = kChunk / 16;
    static_assert(kSlice == kChunk, "a slice of a chunk is a square");

    using CoefficientTile = Tile<Element, kChunk, Size>;
    using StateTile = Tile<Element, kSlice, Size>;
    using SquareTile = Tile<Element, kChunk, kChunk>;
    using CoefficientCopy = Copy<kThreads, CoefficientTile>;
    using SquareCopy = Copy<kThreads, SquareTile>;
    using Square = Products<kChunk / 16>;  // half of the columns of a square
    using Wide = Products<Columns / 16>;   // half of the block's columns of dB and dC
    static constexpr int kColumnParts = Size / Columns;

    struct Smem {
        CoefficientTile b;
        CoefficientTile c;
        StateTile state;  // S, and then G
        SquareTile x;
        SquareTile dy;    // dout, then dy, at the end dx on its way to global memory
        SquareTile gate;  // z, then dout silu'(z), at the end dz
        SquareTile k;
        SquareTile q;
        Steps<kChunk> steps;
        DecayGradient<Element, kWarps> decay;
        float skip[kSlice];              // D
        SkipGradient<Element, kWarps> dskip;
        float largest[2][kWarps];        // of C B^T and of DX, for bounds
    };

    // The heads of this block.
    struct Part {
        int group;
        int index;  // in the group
        int parts;  // of the group
        int head;   // the first one
        int heads;
    };

    __device__ __forceinline__ static Part part_of_block(const GradientParams& params) {
        const int heads = params.layer.heads_per_group;
        const int parts = (heads + params.heads_per_part - 1) / params.heads_per_part;
        const int block = static_cast<int>(blockIdx.x) / kColumnParts;
        const int group = block / parts;
        const int index = block % parts;
        const int first = index * params.heads_per_part;
        return {group, index, parts, group * heads + first,
                min(heads - first, params.heads_per_part)};
    }

    // This warp's 16 rows among the products', their first one, and the first of its columns.
    __device__ __forceinline__ static int tile() { return warp_of_block() % kRowWarps; }
    __device__ __forceinline__ static int row() { return 16 * tile(); }
    __device__ __forceinline__ static int half() { return warp_of_block() / kRowWarps; }
    __device__ __forceinline__ static int column() { return kChunk / 2 * half(); }
    // Likewise in a tile of B, C or states, for the block's columns of dB and dC.
    __device__ __forceinline__ static int wide_column() {
        return static_cast<int>(blockIdx.x) % kColumnParts * Columns + Columns / 2 * half();
    }
    __device__ __forceinline__ static bool first_columns() {
        return static_cast<int>(blockIdx.x) % kColumnParts == 0;
    }
    // The first row of this lane in a 16x8 part, and its first column.
    __device__ __forceinline__ static int lane_row() { return lane_of_warp() / 4; }
    __device__ __forceinline__ static int lane_column() { return 2 * (lane_of_warp() % 4); }
    // The chunk of 16 bytes of a square's rows that this thread copies, and the first of the rows.
    __device__ __forceinline__ static int copy_chunk() { return SquareCopy::chunk(); }
    __device__ __forceinline__ static int copy_row() { return SquareCopy::row(); }

    __device__ __forceinline__ static void run(const GradientParams& params, Smem& smem) {
        const Layer& layer = params.layer;
        const Place place = place_of_block(layer);
        if (!place.exists || place.steps == 0) {
            return;
        }
        const bool gated = layer.z.at != nullptr;
        const Part part = part_of_block(params);
        fetch_coefficients(layer, place, part, smem);
        const int slices = (layer.headdim + kSlice - 1) / kSlice;
        Square products = {};  // C B^T
        Wide db = {};
        Wide dc = {};
#pragma unroll 1
        for (int n = 0; n < part.heads * slices; ++n) {
            const int channel = n % slices * kSlice;
            const Slice slice = {part.head + n / slices, channel,
                                 min(layer.headdim - channel, kSlice)};
            const int64_t head = place.slot * layer.heads + slice.head;
            const int64_t index = head * slices + n % slices;
            fetch_squares(params, place, slice, smem);
            fetch_state(params.states, head, layer, slice, smem);
            if (channel == 0 && warp_of_block() == 0) {
                scan_steps<Element>(
                    smem.steps, layer, slice,
                    load_steps<Element>(layer, slice, place.start, place.steps), place.steps);
            }
            load_skip(layer, slice, smem);
            wait_copies<0>();
            __syncthreads();  // all tiles, and the decays of the steps, before they are read
            prepare(gated, smem);
            if (n == 0) {
                products.template add_rows_by_rows<Size / 16, Band::UpTo>(smem.c, row(), smem.b,
                                                                          column());
                if constexpr (kNarrow<Element>) {
                    note_largest(products, smem, 0);
                }
            }
            __syncthreads();  // dy of all threads, before it is multiplied

            Square dx = {};  // DX
            dx.template add_rows_by_rows<kSteps, Band::UpTo>(smem.dy, row(), smem.x, column());
            const Units units = bounds(dx, smem);
            store_k_q(products, dx, units, smem);

            // What the state before the chunk brings.
            const float state_unit = params.state_units[index];
            const RowPair inflow = for_rows(
                row(), [&](int i) { return smem.steps.inflow[i] * state_unit; });
            Square y = {};
            y.template add_rows_by_rows<Size / 16>(smem.c, row(), smem.state, column());
            y.multiply_rows(inflow);
            smem.decay.note(smem.decay.inflow[half()], y.rows_dot(smem.dy, row(), column()), row());
            dc.template add_rows_by_columns<kSteps>(inflow, smem.dy, row(), smem.state,
                                                    wide_column());
            // K and Q of all warps, before they are multiplied; and all products with S, before G
            // overwrites it
            __syncthreads();
            fetch_state(params.gradients, head, layer, slice, smem);

            // What the steps of the chunk bring each other.
            if (gated) {
                finish_gate(y, units, smem);
            }
            const RowPair q_factors = {units.q, units.q};
            const RowPair k_factors = {units.k, units.k};
            dc.template add_rows_by_columns<kSteps, Band::UpTo>(q_factors, smem.q, row(), smem.b,
                                                                wide_column());
            db.template add_columns_by_columns<kSteps, Band::From>(q_factors, smem.q, row(), smem.c,
                                                                   wide_column());
            Square v = {};
            v.template add_columns_by_columns<kSteps, Band::From>(k_factors, smem.k, row(), smem.dy,
                                                                  column());
            wait_copies<0>();
            // all of G, before it is multiplied; and all products with dy, before dx overwrites it
            __syncthreads();

            // What they bring the state after the chunk.
            const float gradient_unit = params.gradient_units[index];
            const RowPair outflow = for_rows(
                row(), [&](int j) { return smem.steps.outflow(j) * gradient_unit; });
            Square leave = {};
            leave.template add_rows_by_rows<Size / 16>(smem.b, row(), smem.state, column());
            leave.multiply_rows(outflow);
            smem.decay.note(smem.decay.outflow[half()], leave.rows_dot(smem.x, row(), column()),
                            row());
            v.add(leave);
            smem.decay.note(smem.decay.input[half()], v.rows_dot(smem.x, row(), column()), row());
            finish_inputs(v, smem);
            const RowPair weights = for_rows(row(), [&](int j) {
                return smem.steps.size[j] * smem.steps.outflow(j) * gradient_unit;
            });
            db.template add_rows_by_columns<kSteps>(weights, smem.x, row(), smem.state,
                                                    wide_column());
            __syncthreads();  // dx, dz and the sums of all warps, before they are stored

            if (!first_columns()) {
                continue;  // another block stores them
            }
            store(params.dx, place, slice, smem.dy);
            if (gated) {
                store(params.dz, place, slice, smem.gate);
            }
            float* sums = params.sums + head * params.sums_of_head;
            if (warp_of_block() == 0) {
                smem.decay.add_slice(smem.steps, through(params, index, slice, smem), channel == 0);
                if (channel + slice.channels == layer.headdim) {
                    smem.decay.store(params, place, slice, smem.steps, sums);
                }
            } else if (warp_of_block() == 1) {
                smem.dskip.store(slice, params.sums_of_head > 3, sums + 2);
            }
            // Threads overwrite the tiles that they have stored themselves, and what both warps read
            // here is written after the next barrier, but the decays of the steps.
            __syncwarp();
        }
        store_coefficients(params, place, part, db, 0);
        store_coefficients(params, place, part, dc, 1);
    }

    // Starts the copies of B and C.
    __device__ __forceinline__ static void fetch_coefficients(const Layer& layer,
                                                              const Place& place, const Part& part,
                                                              Smem& smem) {
        const auto fetch = [&](const CoefficientTile& tile, const Rows& from) {
            const Element* first = row_of<const Element>(from, place.start, part.group);
            CoefficientCopy::start(tile, CoefficientCopy::source(first, from.step_stride),
                                   from.step_stride, place.steps, layer.dstate / kElements);
        };
        fetch(smem.b, layer.b);
        fetch(smem.c, layer.c);
        commit_copies();
    }

    // Starts the copies of x, dout and z of a slice.
    __device__ __forceinline__ static void fetch_squares(const GradientParams& params,
                                                         const Place& place, const Slice& slice,
                                                         Smem& smem) {
        const auto fetch = [&](const SquareTile& tile, const Rows& from) {
            const Element* first =
                row_of<const Element>(from, place.start, slice.head) + slice.channel;
            SquareCopy::start(tile, SquareCopy::source(first, from.step_stride), from.step_stride,
                              place.steps, slice.channels / kElements);
        };
        fetch(smem.x, params.layer.x);
        fetch(smem.dy, params.dout);
        if (params.layer.z.at != nullptr) {
            fetch(smem.gate, params.layer.z);
        }
        commit_copies();
    }

    // Starts the copy of a slice's states, or of their gradients; `head` counts heads of all chunks.
    __device__ __forceinline__ static void fetch_state(const void* states, int64_t head,
                                                       const Layer& layer, const Slice& slice,
                                                       Smem& smem) {
        const Element* first = static_cast<const Element*>(states) +
                               (head * layer.headdim + slice.channel) * layer.dstate;
        CoefficientCopy::start(smem.state, CoefficientCopy::source(first, layer.dstate),
                               layer.dstate, slice.channels, layer.dstate / kElements);
        commit_copies();
    }

    __device__ __forceinline__ static void load_skip(const Layer& layer, const Slice& slice,
                                                     Smem& smem) {
        const int i = thread_of_block();
        if (i < kSlice) {
            const bool exists = layer.d != nullptr && i < slice.channels;
            smem.skip[i] = exists ? layer.d[slice.head * layer.d_head_stride +
                                            (slice.channel + i) * layer.d_channel_stride]
                                  : 0.f;
        }
    }

    // dout becomes dy and z becomes dout silu'(z), where there is a gate; and the sums over the
    // warp's rows of dy x, which make dD.
    __device__ __forceinline__ static void prepare(bool gated, Smem& smem) {
        float sums[kElements] = {};
#pragma unroll
        for (int pass = 0; pass < kChunk / SquareCopy::kStep; ++pass) {
            const int offset =
                SquareTile::offset(copy_row() + pass * SquareCopy::kStep, copy_chunk());
            const auto chunk = [&](SquareTile& tile) {
                return reinterpret_cast<unsigned char*>(tile.elements) + offset;
            };
            auto dy = Pairs<Element>::load(chunk(smem.dy));
            const auto x = Pairs<Element>::load(chunk(smem.x));
            if (gated) {
                auto z = Pairs<Element>::load(chunk(smem.gate));
#pragma unroll
                for (int i = 0; i < Pairs<Element>::kCount; ++i) {
                    gate(dy.values[i], z.values[i]);
                }
                dy.store(chunk(smem.dy));
                z.store(chunk(smem.gate));
            }
#pragma unroll
            for (int i = 0; i < Pairs<Element>::kCount; ++i) {
                const float2 left = part<Element>(dy.values[i]);
                const float2 right = part<Element>(x.values[i]);
                sums[2 * i] += left.x * right.x;
                sums[2 * i + 1] += left.y * right.y;
            }
        }
        smem.dskip.note(sums);
    }

    // dout to dout silu(z), and z to dout silu'(z), of two elements.
    __device__ __forceinline__ static void gate(Pair<Element>& dout, Pair<Element>& z) {
        const float2 gradient = part<Element>(dout);
        const float2 input = part<Element>(z);
        const float2 s = make_float2(sigmoid(input.x), sigmoid(input.y));
        dout = join<Element>(gradient.x * (input.x * s.x), gradient.y * (input.y * s.y));
        z = join<Element>(gradient.x * silu_derivative(input.x, s.x),
                          gradient.y * silu_derivative(input.y, s.y));
    }

    __device__ __forceinline__ static void note_largest(const Square& sums, Smem& smem, int which) {
        const float largest = sums.largest();
        if (lane_of_warp() == 0) {
            smem.largest[which][warp_of_block()] = largest;
        }
    }

    // What K, Q, and dt' as a factor of K are divided by: see range.cuh.
    struct Units {
        float k;
        float q;
        float size;
    };

    __device__ __forceinline__ static Units bounds(const Square& dx, Smem& smem) {
        Units units = {1.f, 1.f, 1.f};
        if constexpr (kNarrow<Element>) {
            note_largest(dx, smem, 1);
            __syncthreads();  // the magnitudes of all warps, before they are compared
            float largest[2] = {};
#pragma unroll
            for (int warp = 0; warp < kWarps; ++warp) {
                largest[0] = fmaxf(largest[0], smem.largest[0][warp]);
                largest[1] = fmaxf(largest[1], smem.largest[1][warp]);
            }
            const Steps<kChunk>& steps = smem.steps;
            units.k = fitting(largest[0] * steps.growth);
            units.q = fitting(largest[1] * steps.growth * steps.largest);
            units.size = steps.largest > 1.f ? power_above(steps.largest) : 1.f;
        }
        return units;
    }

    // K and Q of the warp, and what they tell of the gradients of decays.
    __device__ __forceinline__ static void store_k_q(const Square& products, const Square& dx,
                                                     const Units& units, Smem& smem) {
        const Steps<kChunk>& steps = smem.steps;
        const float k_factor = inverse(units.k);
        const float q_factor = inverse(units.q);
        Square p = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int at = row() + 8 * i + lane_row();
            const float high = steps.high[at];
            const float low = steps.low[at];
#pragma unroll
            for (int part = 0; part < kChunk / 16; ++part) {
                if (column() / 16 + part / 2 > tile()) {
                    continue;  // above the diagonal nobody reads
                }
                const int first = column() + 8 * part + lane_column();
                const auto both_of = [&](const float* numbers) {
                    return *reinterpret_cast<const float2*>(numbers + first);
                };
                const float2 highs = both_of(steps.high);
                const float2 lows = both_of(steps.low);
                const float2 sizes = both_of(steps.size);
                const float left =
                    first <= at ? between(high, low, highs.x, lows.x) : 0.f;
                const float right =
                    first + 1 <= at ? between(high, low, highs.y, lows.y) : 0.f;
                const float* cb = &products.values[part][2 * i];
                const float* dyx = &dx.values[part][2 * i];
                const float k[2] = {cb[0] * left, cb[1] * right};
                const float q[2] = {dyx[0] * (left * sizes.x), dyx[1] * (right * sizes.y)};
                p.values[part][2 * i] = cb[0] * q[0];
                p.values[part][2 * i + 1] = cb[1] * q[1];
                pair_of(smem.k, at, first) = join<Element>(k[0] * k_factor, k[1] * k_factor);
                pair_of(smem.q, at, first) = join<Element>(q[0] * q_factor, q[1] * q_factor);
            }
        }
        smem.decay.note_crossing(smem.decay.crossing[warp_of_block()], p, row(), half());
    }

    // Calls with(numbers, x, other) for each pair of a product's numbers with the elements of two
    // tiles in the same places, and stores what it returns in the second one.
    template <typename With>
    __device__ __forceinline__ static void for_each_pair(const Square& sums, const SquareTile& x,
                                                         SquareTile& other, const With& with) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int part = 0; part < kChunk / 16; ++part) {
                const int at = row() + 8 * i + lane_row();
                const int channel = column() + 8 * part + lane_column();
                const float2 left = seqmix::part<Element>(pair_of(x, at, channel));
                auto& to = pair_of(other, at, channel);
                const float2 right = seqmix::part<Element>(to);
                const float* pair = &sums.values[part][2 * i];
                to = join<Element>(with(pair[0], left.x, right.x, at, channel),
                                   with(pair[1], left.y, right.y, at, channel + 1));
            }
        }
    }

    // dz = y dout silu'(z), where dout silu'(z) was.
    __device__ __forceinline__ static void finish_gate(Square& y, const Units& units, Smem& smem) {
        const float unit = units.k * units.size;
        const float factor = inverse(units.size);
        // with the sizes as factors of K's columns
        y.template add_rows_by_columns<kSteps, Band::UpTo>(
            {unit, unit}, smem.k, row(), smem.x, column(), [&](Pair<Element> (&k)[4], int step) {
                weigh_columns<Element>(k, smem.steps.size + 16 * step, factor);
            });
        for_each_pair(y, smem.x, smem.gate,
                      [&](float sum, float x, float gate, int, int channel) {
                          return (sum + smem.skip[channel] * x) * gate;
                      });
    }

    // dx = dt' v + D dy, where dy was.
    __device__ __forceinline__ static void finish_inputs(const Square& v, Smem& smem) {
        for_each_pair(v, smem.x, smem.dy, [&](float sum, float, float dy, int at, int channel) {
            return smem.steps.size[at] * sum + smem.skip[channel] * dy;
        });
    }

    // Stores a slice of the chunk.
    __device__ __forceinline__ static void store(const Rows& to, const Place& place,
                                                 const Slice& slice, const SquareTile& from) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(from.elements);
        Element* first = row_of<Element>(to, place.start, slice.head) + slice.channel;
#pragma unroll
        for (int pass = 0; pass < kChunk / SquareCopy::kStep; ++pass) {
            const int at = copy_row() + pass * SquareCopy::kStep;
            if (at < place.steps && kElements * copy_chunk() < slice.channels) {
                *reinterpret_cast<uint4*>(first + at * to.step_stride + kElements * copy_chunk()) =
                    *reinterpret_cast<const uint4*>(bytes + SquareTile::offset(at, copy_chunk()));
            }
        }
    }

    // What the state before the chunk brings through the state after it.
    __device__ __forceinline__ static float through(const GradientParams& params, int64_t index,
                                                    const Slice& slice, const Smem& smem) {
        float dot = 0.f;
        for (int i = 0; 16 * i < slice.channels; ++i) {
            dot += params.dots[4 * index + i];
        }
        return dot * smem.steps.inflow[kChunk - 1];
    }

    // Stores the block's part of dB or dC.
    __device__ __forceinline__ static void store_coefficients(const GradientParams& params,
                                                              const Place& place, const Part& part,
                                                              const Wide& sums, int which) {
        const Layer& layer = params.layer;
        const int groups = layer.heads / layer.heads_per_group;
        const int64_t slot =
            (int64_t{which} * part.parts + part.index) * params.chunk_slots + place.slot;
        float* to = params.coefficients + (slot * groups + part.group) * kChunk * layer.dstate;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int n = 0; n < Columns / 16; ++n) {
                const int at = row() + 8 * i + lane_row();
                const int state = wide_column() + 8 * n + lane_column();
                if (wide_column() + 8 * n < layer.dstate) {
                    *reinterpret_cast<float2*>(to + at * layer.dstate + state) =
                        make_float2(sums.values[n][2 * i], sums.values[n][2 * i + 1]);
                }
            }
        }
    }
};

}  // namespace seqmix::ssd
