// The decays of a gradient's walk that are a number for each step and each row of the transposed state,
// which is a channel of the walk's values.
//
// Queries and keys have no decay in them then; values and outputs have, on the lanes that hold them. Two
// steps of a chunk meet at the border of two neighbouring groups of 1, 2, 4 or 8 steps, of which one
// has each: the value fades up to there, and what is read of it from there on. So for each size of
// groups, values that are multiplied with their decays enter one small product with the scores of
// such pairs, and nothing is divided or overflows. In the same passes decays grow together to those of
// the whole chunk.
//
// Of 16 steps, pairs of neighbours lie in one lane, and are added in f32; so is a step's own value.
// Values that fade are rounded as two operands, whose sum is as good as f32 against scores of 16
// bits: what a pair of steps adds to the gradients of queries and of keys is to cancel. f16 has not
// the range of decays: its values and scores are sums of two bfloat16 each.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/async_copy.cuh"
#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/warp.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/steps.cuh"
#include "linear_attention/values.cuh"

namespace seqmix::linear_attention {

template <typename Element_, int Size, int Tiles, int Count>
struct ByRows {
    using Element = Element_;
    using State = seqmix::linear_attention::State<Element, Size, Tiles>;
    using Values = seqmix::linear_attention::Values<Element, Tiles, Count>;
    using Params = GradientWalkParams;
    static constexpr int kWidth = Values::kWidth;
    // A row of decays: two of them, which the lanes of a quad read side by side, differ in the bank by
    // the eight that the others read.
    static constexpr int kStride = kWidth + 4;

    // The type of small products, and of how many a score is the sum.
    using Inner = std::conditional_t<kNarrow<Element>, __nv_bfloat16, Element>;
    static constexpr int kTerms = kNarrow<Element> ? 2 : 1;

    struct alignas(16) Stage {
        float decays[Count][kStride];  // logarithms
    };
    struct Smem {
        Squares<Inner, Count> scores[kTerms];
        float own[Count];         // scores of a step with itself
        float before[Count / 2];  // of each odd step with the one before it
        float passed[kWidth];     // see Passed
    };
    // The decays of all chunks so far, of the warp's rows: in shared memory, where they take no
    // registers. The first lane of a quad reads and writes those of its rows.
    struct Passed {
        __device__ __forceinline__ explicit Passed(Smem& smem) {
            for_each_row([&](int, int, int channel) { smem.passed[channel] = 1.f; });
        }
    };

    struct Ahead {};
    __device__ __forceinline__ static Ahead load(const Params&, const GradientPlace&, int) {
        return {};
    }

    // Starts the copies of the decays of the n-th tile, or writes them. What is not there keeps everything.
    __device__ __forceinline__ static void fetch(const Params& params, const GradientPlace& place,
                                                 Stage& stage, int n) {
        constexpr int kThreads = 128;
        constexpr int kFours = kWidth / 4;
        const Layer& layer = params.layer;
        const int first = place.first_decay(params) - n * Count;
        const int end = place.steps - n * Count;
        const float* at = decays_at(layer, place, n * Count) +
                          place.channel * layer.decays.channel_stride;
        const int64_t stride = place.direction * layer.decays.step_stride;
        if (layer.ragged != 0 && layer.decays.channel_stride != 0) {
#pragma unroll 1
            for (int i = thread_of_block(); i < Count * kWidth; i += kThreads) {
                const int row = i / kWidth;
                const int channel = i % kWidth;
                const bool valid = row >= first && row < end && channel < layer.dv - place.channel;
                copy4_async(shared_address(&stage.decays[row][channel]),
                            at + row * stride + channel, valid);
            }
            return;
        }
#pragma unroll 2
        for (int i = 0; i < Count * kFours / kThreads; ++i) {
            const int index = i * kThreads + thread_of_block();
            const int row = index / kFours;
            const int channel = 4 * (index % kFours);
            const bool valid = row >= first && row < end && channel < layer.dv - place.channel;
            float* to = &stage.decays[row][channel];
            if (layer.decays.channel_stride == 0) {  // there are none, or all channels share one
                const float decay = valid && layer.decays.at != nullptr ? at[row * stride] : 0.f;
                *reinterpret_cast<float4*>(to) = make_float4(decay, decay, decay, decay);
            } else {
                copy16_async(shared_address(to), at + row * stride + channel, valid);
            }
        }
    }

    // Of the warp's chunk: stores its scores, `strict` without those of a step with itself.
    __device__ __forceinline__ static void prepare(const Params& params, Smem& smem,
                                                   Products& scores, int chunk, Ahead,
                                                   bool strict) {
        const int first = kChunk * chunk;
        const float weight = params.weight * params.layer.scale;
        for_each_score(scores, [&](float& score, int i, int j) {
            score = j < i || (j == i && !strict) ? score * weight : 0.f;
            if (i == j) {
                smem.own[first + i] = score;
            }
            if (i == j + 1 && i % 2 == 1) {
                smem.before[(first + i) / 2] = score;
            }
        });
#pragma unroll
        for (int term = 0; term < kTerms; ++term) {
            smem.scores[term].store(chunk, scores);
            if (term + 1 < kTerms) {
                for_each_score(scores, [&](float& score, int, int) {
                    score -= part<Inner>(seqmix::join<Inner>(score, 0.f)).x;
                });
            }
        }
    }

    // As BySteps::score, without the decays between the two steps.
    __device__ __forceinline__ static float score(const Smem& smem, int chunk, int i, int j) {
        if (i == j + 1 && i % 2 == 1) {
            return smem.before[(kChunk * chunk + i) / 2];
        }
        float sum = 0.f;
#pragma unroll
        for (int term = kTerms - 1; term >= 0; --term) {
            sum += smem.scores[term].number(chunk, i, j);
        }
        return sum;
    }

    // What decays make of the values of a chunk.
    struct Faded {
        float sums[Tiles][2][4];  // what steps read of values of this chunk
        float read[Tiles][2][4];  // with how much of it they find the state before it
        float all[Tiles][2];      // the decay of the whole chunk, of this lane's rows
    };

    // As BySteps::fade.
    __device__ __forceinline__ static void fade(const Params& params, const Smem& smem,
                                                const Stage& stage, int chunk,
                                                typename State::Values& values, Faded& faded) {
        Scores scores;
#pragma unroll
        for (int term = 0; term < kTerms; ++term) {
            smem.scores[term].load(scores[term], chunk);
        }
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
            Fader fader;
            fader.begin(smem, stage, values[tile], chunk, tile);
            fader.join_neighbours(smem, chunk);
            fader.template join_lanes<1>(scores);
            fader.template join_lanes<2>(scores);
            fader.join_halves(scores);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    faded.sums[tile][half][i] = fader.sums[half][i];
                    faded.read[tile][half][i] = fader.read[half][i];
                }
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const float* value = &fader.values[half][2 * row];
                    const float* write = &fader.write[half][2 * row];
                    values[tile][2 * half + row] = seqmix::join<Element>(
                        value[0] * write[0] * params.weight, value[1] * write[1] * params.weight);
                }
            }
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                faded.all[tile][row] = fader.all[0][row];
            }
        }
    }

    // As BySteps::apply.
    __device__ __forceinline__ static void apply(const Params& params, Smem& smem, int, float unit,
                                                 const Faded& faded,
                                                 typename State::Outputs& outputs,
                                                 typename State::Values&, State& state, Passed&) {
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float& output = outputs[tile][i / 4][i % 4];
                output = output * (faded.read[tile][i / 4][i % 4] * (unit * params.layer.scale)) +
                         faded.sums[tile][i / 4][i % 4];
            }
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const float decay = faded.all[tile][row] * unit;
#pragma unroll
                for (int part = 0; part < State::kParts; ++part) {
                    state.values[tile][part][2 * row] *= decay;
                    state.values[tile][part][2 * row + 1] *= decay;
                }
            }
        }
        for_each_row([&](int tile, int row, int channel) {
            smem.passed[channel] *= faded.all[tile][row];
        });
    }

    // The decay of a chunk in a lane's row of a tile of the transposed state.
    __device__ __forceinline__ static float decay(const Smem&, int, const Faded& faded, int tile,
                                                  int row) {
        return faded.all[tile][row];
    }

    // As BySteps::leave.
    template <typename Normalized>
    __device__ __forceinline__ static void leave(const Params& params, const GradientPlace& place,
                                                 State& state,
                                                 typename Normalized::Smem& normalized) {
        const Layer& layer = params.layer;
        const float* at = decays_at(layer, place, place.steps);
#pragma unroll
        for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const int channel =
                    place.channel + Values::warp_channel() + 16 * tile + 8 * row + lane_row();
                const float decay =
                    exp2_approx(channel < layer.dv ? exponent_of(at[channel]) : 0.f);
#pragma unroll
                for (int part = 0; part < State::kParts; ++part) {
                    state.values[tile][part][2 * row] *= decay;
                    state.values[tile][part][2 * row + 1] *= decay;
                }
                if (lane_column() == 0) {
                    normalized.z[Normalized::channel(tile, row)] *= decay;
                }
            }
        }
    }

    // Stores the decays of all chunks, for the passing of states.
    __device__ __forceinline__ static void store(const Params& params, const GradientPlace& place,
                                                 const Smem& smem, const Passed&) {
        const Layer& layer = params.layer;
        const int64_t head = place.slot * layer.heads + place.head;
        for_each_row([&](int, int, int channel) {
            if (place.channel + channel < layer.dv) {
                params.decays[head * layer.dv + place.channel + channel] = smem.passed[channel];
            }
        });
    }

private:
    // A chunk's scores by columns: of two halves of the rows, two of the columns.
    using Scores = Pair<Inner>[kTerms][4];

    // Calls with(tile, row, channel of the block) for the rows of a quad, on its first lane.
    template <typename With>
    __device__ __forceinline__ static void for_each_row(const With& with) {
        if (lane_column() == 0) {
#pragma unroll
            for (int i = 0; i < 2 * Tiles; ++i) {
                with(i / 2, i % 2, Values::warp_channel() + 8 * i + lane_row());
            }
        }
    }

    // 16 rows in a chunk, as lanes hold them: for each half of the steps, two neighbouring ones of two
    // rows. Steps are in groups, at first of one step each.
    struct Fader {
        float values[2][4];
        float sums[2][4];   // what is read so far of values of the own group
        float read[2][4];   // the decay from before the group to what is read
        float write[2][4];  // the decay of a value to after the group
        float all[2][2];    // of the whole group, by half and row

        __device__ __forceinline__ void begin(const Smem& smem, const Stage& stage,
                                              const Pair<Element> (&from)[4], int chunk,
                                              int tile) {
            const int channel = Values::warp_channel() + 16 * tile + lane_row();
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float2 own = of_columns(smem.own + kChunk * chunk, half);
                const int step = kChunk * chunk + 8 * half + lane_column();
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 pair = part<Element>(from[2 * half + i / 2]);
                    const float decay = exp2_approx(
                        exponent_of(stage.decays[step + i % 2][channel + 8 * (i / 2)]));
                    values[half][i] = i % 2 == 0 ? pair.x : pair.y;
                    sums[half][i] = (i % 2 == 0 ? own.x : own.y) * values[half][i];
                    read[half][i] = decay;
                    write[half][i] = 1.f;
                    decays[half][i] = decay;
                }
            }
        }

        // Groups of two steps.
        __device__ __forceinline__ void join_neighbours(const Smem& smem, int chunk) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int step = kChunk * chunk + 8 * half + lane_column();
                const float score = smem.before[step / 2];
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const int i = 2 * row;
                    sums[half][i + 1] +=
                        read[half][i + 1] * (score * (values[half][i] * write[half][i]));
                    read[half][i + 1] *= decays[half][i];
                    write[half][i] *= decays[half][i + 1];
                    all[half][row] = decays[half][i] * decays[half][i + 1];
                }
            }
        }

        // Groups of 4 * Distance steps, of those of two lanes that are so far apart.
        template <int Distance>
        __device__ __forceinline__ void join_lanes(const Scores& scores) {
            const bool late = (lane_of_warp() & Distance) != 0;
            // a lane has the scores of one row with two steps
            const bool apart = (lane_row() / 2 ^ lane_of_warp() % 4) / Distance == 1 &&
                               (lane_row() / 2 & Distance) != 0;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                add(scores, 3 * half, apart, half, half);
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const float other = __shfl_xor_sync(kAllLanes, all[half][row], Distance);
#pragma unroll
                    for (int i = 2 * row; i < 2 * row + 2; ++i) {
                        read[half][i] *= late ? other : 1.f;
                        write[half][i] *= late ? 1.f : other;
                    }
                    all[half][row] *= other;
                }
            }
        }

        // All 16 steps.
        __device__ __forceinline__ void join_halves(const Scores& scores) {
            add(scores, 2, true, 0, 1);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                write[0][i] *= all[1][i / 2];
                read[1][i] *= all[0][i / 2];
            }
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                all[0][row] *= all[1][row];
            }
        }

    private:
        float decays[2][4];

        // Adds what the steps of a half read of the values of one, if this lane's scores count.
        __device__ __forceinline__ void add(const Scores& scores, int which, bool counts, int of,
                                            int to) {
            float products[4] = {};
            Pair<Inner> faded[4];
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const int i = 2 * row;
                const float2 pair = make_float2(values[of][i] * write[of][i],
                                                values[of][i + 1] * write[of][i + 1]);
                faded[row] = seqmix::join<Inner>(pair.x, pair.y);
                faded[row + 2] = {};
                if constexpr (sizeof(Inner) == 2) {
                    const float2 rounded = part<Inner>(faded[row]);
                    faded[row + 2] = seqmix::join<Inner>(pair.x - rounded.x, pair.y - rounded.y);
                }
            }
#pragma unroll
            for (int term = kTerms - 1; term >= 0; --term) {
                const Pair<Inner> score = counts ? scores[term][which] : Pair<Inner>{};
                // the rest of the values counts with the first term only
                multiply_pairs<Inner>(products, faded, score, term == 0 ? score : Pair<Inner>{});
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[to][i] += read[to][i] * products[i];
            }
        }
    };
};

}  // namespace seqmix::linear_attention
