// What a warp computes of a chunk before all warps walk over it: mapped queries and keys, decays,
// scores, and what outputs are divided by.
//
// With a decay for each channel of the keys, queries and keys are multiplied by their decays in place,
// as they meet the state. With a number a step, outputs and values are, and queries and keys stay.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/operands.cuh"
#include "common/range.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"
#include "linear_attention/features.cuh"
#include "linear_attention/gates.cuh"
#include "linear_attention/normalizer.cuh"
#include "linear_attention/params.h"
#include "linear_attention/place.cuh"
#include "linear_attention/scores.cuh"
#include "linear_attention/state.cuh"
#include "linear_attention/steps.cuh"

namespace seqmix::linear_attention {

// What decays depend on, besides the head.
enum class Gate {
    Step,     // the step
    Channel,  // the step and the channel of the keys
};

template <typename Element_, int Size, int Count, Gate Kind>
struct Prepare {
    using Element = Element_;
    static constexpr bool kChannel = Kind == Gate::Channel;
    static constexpr int kThreads = 128;
    static constexpr int kElements = 16 / sizeof(Element);  // of 16 bytes
    static constexpr int kChunks = Count / kChunk;
    static_assert(kChunks <= kThreads / 32, "a warp prepares one chunk");

    using KeyTile = Tile<Element, Count, Size>;
    using KeyCopy = Copy<kThreads, KeyTile>;
    using GateTile = Tile<float, Count, Size>;
    using Normalizer = seqmix::linear_attention::Normalizer<Size, Count>;

    // What is read of a tile of steps, besides values.
    struct Plain {
        KeyTile q;
        KeyTile k;
    };
    struct Gated : Plain {
        GateTile gates;  // logarithms, then decays, then scratch of the chunk's warp
    };
    using Stage = std::conditional_t<kChannel, Gated, Plain>;

    struct OfChannels {
        float decay[kChunks][Size];  // of each chunk
        float bonus[Size];
    };
    using Decays = std::conditional_t<kChannel, OfChannels, Steps<Count>>;

    // Decays that a step has.
    static constexpr int kPassed = kChannel ? Size : 1;

    struct Smem {
        Squares<Element, Count> scores;
        Decays decays;
        // of all chunks of a segment so far, where states are all that is computed; a thread reads and
        // writes its own
        alignas(16) float passed[(kPassed + 3) / 4 * 4];
        Normalizer normalizer;
        float factors[Count];      // of outputs
        float score_units[Count];  // what scores were divided by, if kNarrow
    };

    // Whether a walk computes outputs, and states.
    __device__ __forceinline__ static bool writes(Mode mode) {
        return mode == Mode::Whole || mode == Mode::Read;
    }
    __device__ __forceinline__ static bool updates(Mode mode) { return mode != Mode::Read; }

    // The warp's chunk, and its first step in the tile.
    __device__ __forceinline__ static int chunk() { return warp_of_block(); }
    __device__ __forceinline__ static int first() { return kChunk * warp_of_block(); }

    // Reads what does not depend on steps, before the first barrier.
    __device__ __forceinline__ static void begin(const WalkParams& params, const Place& place,
                                                 Mode mode, Smem& smem) {
        const Layer& layer = params.layer;
        for (int c = thread_of_block(); c < kPassed; c += kThreads) {
            smem.passed[c] = 1.f;
        }
        if constexpr (kChannel) {
            for (int c = thread_of_block(); c < Size; c += kThreads) {
                smem.decays.bonus[c] =
                    layer.bonus != nullptr && c < layer.dk
                        ? layer.bonus[place.head * layer.bonus_head_stride + c]
                        : 0.f;
            }
        }
        if (params.normalize != 0) {
            const States& z = params.initial_z;
            const float* from = nullptr;
            if (params.z_segments != nullptr && writes(mode)) {
                const int64_t slot = mode == Mode::Read ? place.first_slot : place.slot;
                from = params.z_segments + (slot * layer.heads + place.head) * layer.dk;
            } else if (z.at != nullptr && mode == Mode::Whole) {
                from = state_of(z, place, 0);
            }
            const int64_t stride = params.z_segments != nullptr ? 1 : z.key_stride;
            smem.normalizer.template load<kThreads>(from, stride, layer.dk);
        }
    }

    // Starts the copies of the tile that begins `step` steps into the walk.
    __device__ __forceinline__ static void fetch(const Layer& layer, const Place& place,
                                                 Stage& stage, Mode mode, int step) {
        const auto keys = [&](const KeyTile& tile, const Rows& from) {
            const Element* row = row_of<const Element>(from, place, step);
            const int64_t stride = stride_of(from, place);
            KeyCopy::start(tile, KeyCopy::source(row, stride), stride, place.steps - step,
                           layer.dk / kElements);
        };
        if (writes(mode)) {
            keys(stage.q, layer.q);
        }
        if (updates(mode)) {
            keys(stage.k, layer.k);
            if constexpr (kChannel) {
                fetch_gates<kThreads>(stage.gates, layer, place, step);
            }
        }
    }

    // The exponent of this lane's step in the warp's chunk of the tile that begins `step` steps into
    // the walk, where decays are a number a step.
    __device__ __forceinline__ static float load(const Layer& layer, const Place& place, int step) {
        if constexpr (kChannel) {
            return 0.f;
        }
        return load_exponent(
            decays_of(layer, place, step + first() + lane_of_warp() % kChunk));
    }

    // Makes what all warps need of this warp's chunk, of a tile with `rows` steps left.
    __device__ __forceinline__ static void run(const WalkParams& params, Smem& smem, Stage& stage,
                                               Mode mode, float exponent, int rows) {
        const Layer& layer = params.layer;
        if (chunk() >= kChunks) {
            return;
        }
        if (updates(mode)) {
            if constexpr (kChannel) {
                exponentiate(stage.gates, smem.decays.decay[chunk()], first());
            } else {
                smem.decays.scan(chunk(), exponent);
            }
            map_rows(stage.k, static_cast<FeatureMap>(layer.key_map), first(), rows - first(),
                     layer.dk);
        }
        if (writes(mode)) {
            map_rows(stage.q, static_cast<FeatureMap>(layer.query_map), first(), rows - first(),
                     layer.dk);
        }
        __syncwarp();  // decays and mapped rows of all lanes, before each reads them
        Products scores = {};
        if (mode == Mode::Whole) {
            if constexpr (kChannel) {
                if (layer.bonus != nullptr) {
                    score_channels<true>(params, scores, smem, stage);
                } else {
                    score_channels<false>(params, scores, smem, stage);
                }
            } else {
                multiply_rows<Size>(scores, stage.q, stage.k, first());
                for_each_score(scores, [&](float& score, int i, int j) {
                    score = j <= i ? score * smem.decays.between(first() + i, first() + j) : 0.f;
                });
            }
        } else if (kChannel && updates(mode)) {
            if constexpr (kChannel) {
                fade_keys<Size>(stage.k, stage.gates, first(), params.weight);
                __syncwarp();  // the keys of all lanes, before each reads them
            }
        }
        if (params.normalize != 0) {
            if (updates(mode)) {
                const float* weights = nullptr;
                if constexpr (!kChannel) {
                    weights = smem.decays.weight + first();
                }
                smem.normalizer.sum_keys(stage.k, weights, chunk());
            }
            smem.normalizer.sum_rows(scores, chunk());
        }
        float units[2] = {1.f, 1.f};
        if (mode == Mode::Whole) {
            fit_rows<Element>(scores, units);
            smem.scores.store(chunk(), scores);
        }
        if (lane_column() == 0) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = first() + lane_row() + 8 * half;
                smem.score_units[at] = units[half];
                smem.factors[at] = layer.scale * units[half];
            }
        }
    }

    // Multiplies what has passed by the decays of a chunk.
    __device__ __forceinline__ static void pass(Smem& smem, Mode mode, int chunk) {
        if (mode != Mode::States && mode != Mode::All) {
            return;
        }
        for (int c = thread_of_block(); c < kPassed; c += kThreads) {
            smem.passed[c] *= decay_of(smem, chunk, c);
        }
    }

    // Scores with decays of each channel; then queries and keys meet the state with theirs.
    template <bool Bonus>
    __device__ __forceinline__ static void score_channels(const WalkParams& params,
                                                          Products& scores, Smem& smem,
                                                          Stage& stage) {
        PairScores<Size, Bonus> pairs;
        static_assert(sizeof(float) * pairs.kScratch <= sizeof(float) * kChunk * Size,
                      "a chunk's decays leave room for its scores");
        pairs.compute(stage.q, stage.k, stage.gates, first(), smem.decays.bonus);
        __syncwarp();  // all lanes have read queries and keys, before they are overwritten
        fade_queries<Size>(stage.q, stage.gates, first(), Bonus);
        fade_keys<Size>(stage.k, stage.gates, first(), params.weight);
        __syncwarp();  // all lanes have read the decays, before they are overwritten
        pairs.exchange(scores, stage.gates.elements + first() * Size);
        for_each_score(scores, [&](float& score, int, int) { score *= params.weight; });
    }

    // Divides the outputs of the warp's chunk, and carries z on. All warps, which have a barrier in
    // common here and before.
    __device__ __forceinline__ static void normalize(const WalkParams& params, const Place& place,
                                                     Smem& smem, const Stage& stage, Mode mode,
                                                     int step) {
        const Layer& layer = params.layer;
        Normalizer& normalizer = smem.normalizer;
        if (updates(mode) && chunk() < kChunks) {
            normalizer.pass(chunk(), [&](int of, int c) { return decay_of(smem, of, c); });
        }
        if (writes(mode) && chunk() < kChunks) {
            const auto divide = [&](int row, float product) {
                const int at = first() + row;
                float inflow = 1.f;
                if constexpr (!kChannel) {
                    inflow = mode == Mode::Whole ? smem.decays.inflow[at] : 1.f;
                }
                const float sum =
                    layer.scale * (normalizer.row_sums[at] + inflow * product);
                smem.factors[at] = smem.factors[at] / (sum + params.eps);
                const Rows& sums = params.normalizer;
                if (sums.at != nullptr && place.channel == 0 && step + at < place.steps) {
                    *row_of<float>(sums, place, step + at) = sum;
                }
            };
            normalizer.read(stage.q, chunk(), mode == Mode::Read, divide);
        }
        __syncthreads();  // all have read z, before it is overwritten; factors before they are read
        if (updates(mode) && chunk() == 0) {
            normalizer.carry();
        }
    }

    // The decay of a chunk, of a channel of the keys if each has its own.
    __device__ __forceinline__ static float decay_of(const Smem& smem, int chunk, int channel) {
        if constexpr (kChannel) {
            return smem.decays.decay[chunk][channel];
        } else {
            return smem.decays.decay[chunk];
        }
    }

    // Puts the decays behind the walk, 1 if there are none, in the place of those of the first chunk.
    // Needs a barrier before and after it.
    __device__ __forceinline__ static void find_end(const Layer& layer, const Place& place,
                                                    Smem& smem) {
        const float* behind = decays_behind(layer, place);
        const auto decay = [&](int c) {
            return behind != nullptr && c < layer.dk
                       ? exp2_approx(exponent_of(behind[c * layer.decays.channel_stride]))
                       : 1.f;
        };
        if constexpr (kChannel) {
            for (int c = thread_of_block(); c < Size; c += kThreads) {
                smem.decays.decay[0][c] = decay(c);
            }
        } else if (thread_of_block() == 0) {
            smem.decays.decay[0] = decay(0);
        }
    }

    // Stores what a segment leaves behind besides its state: its decays, and z.
    __device__ __forceinline__ static void end(const WalkParams& params, const Place& place,
                                               Mode mode, const Smem& smem) {
        const Layer& layer = params.layer;
        if (!updates(mode) || place.channel != 0) {
            return;
        }
        const int64_t head = place.slot * layer.heads + place.head;
        if (mode != Mode::Whole) {
            const int count = kChannel ? layer.dk : 1;
            for (int c = thread_of_block(); c < count; c += kThreads) {
                params.decays[head * count + c] = smem.passed[c] * decay_of(smem, 0, c);
            }
        }
        const States& last = params.last_z;
        if (params.normalize == 0 || (mode == Mode::Whole && !(place.last && last.at))) {
            return;
        }
        const bool whole = mode == Mode::Whole;
        smem.normalizer.template store<kThreads>(
            whole ? state_of(last, place, 0) : params.z_segments + head * layer.dk,
            whole ? last.key_stride : 1, layer.dk, [&](int c) { return decay_of(smem, 0, c); });
    }
};

}  // namespace seqmix::linear_attention
