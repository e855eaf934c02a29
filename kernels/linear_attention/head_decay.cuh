// The gradient of a decay that a head has for all steps, chunk by chunk.
//
// One decay acts at each step: what passes so many of them is in its gradient as many times. In a chunk
// of `n` steps these are, counted from 1,
//
//     i          for what the i-th query reads of the state before the chunk
//     n - j      for what the j-th key leaves to later chunks
//     i - j      for what the i-th query reads of the j-th key
//     n          for what passes the whole chunk
//
// and nothing is subtracted from anything: sums of gradients of steps (decay_gradient.cuh) would have the
// error of each border in all steps of its chunk. Only pairs within the chunk, which `dq` and `dk` both
// hold, come to n + i - j times. So they are computed once more from the very scores that multiplied the
// keys in `dq`, and taken off n times, exactly but for the rounding of f32.
//
// grid    x: spans of 64 steps; y: heads; z: sequences
// warp    takes a chunk, and a lane every 32nd channel
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "linear_attention/gradient_params.h"
#include "linear_attention/gradient_place.cuh"
#include "linear_attention/steps.cuh"
#include "linear_attention/sum_heads.cuh"

namespace seqmix::linear_attention {

template <typename Element>
struct HeadDecay {
    static constexpr int kWarps = kSpan / kChunk;
    static constexpr int kThreads = 32 * kWarps;

    // Of a chunk's queries, and of what its keys look up: a row for each step, a column for each key.
    using Scores = float[2][kChunk][kChunk];
    struct alignas(16) Smem {
        Scores scores[kWarps];
    };
    struct Chunk {
        int start;       // its first step in the row of the batch
        int steps;
        bool last;       // of its sequence
        int late;        // 1: the first step has no key and no decay
        float exponent;  // of the decay of a step
    };

    __device__ __forceinline__ static void run(const HeadDecayParams& params, Smem& smem) {
        const int sequence = static_cast<int>(blockIdx.z);
        const Sequence all = sequence_of(params.cu_seqlens, params.steps, kChunk, sequence);
        const int index = static_cast<int>(blockIdx.x) * kWarps + warp_of_block();
        const int first = kChunk * index;
        const int left = all.steps + params.shift - first;
        if (left <= 0) {
            return;  // the whole warp: nothing waits for it
        }
        const int head = static_cast<int>(blockIdx.y);
        const Chunk chunk = {
            all.start + first, min(left, kChunk), left <= kChunk, index == 0 ? params.shift : 0,
            exponent_of(*(params.decays.at + sequence * params.decays.batch_stride +
                          head * params.decays.head_stride))};
        Scores& scores = smem.scores[warp_of_block()];
        load_scores(params, chunk, params.pairs, scores[0]);
        load_scores(params, chunk, params.lookup_pairs, scores[1]);
        __syncwarp();  // the scores of all lanes, before each reads them

        const int decays = chunk.steps - chunk.late;  // that pass the chunk
        const int64_t slot =
            (span_slot(params.cu_seqlens, params.steps, kChunk, sequence) + index) * params.heads +
            head;
        // the one at the border behind it lies between the two states as well
        const float passing =
            decays * exp2_approx(chunk.exponent * static_cast<float>(decays + !chunk.last));
        float sum = 0.f;
#pragma unroll 1
        for (int channel = lane_of_warp(); channel < params.channels; channel += 32) {
            sum += of_steps(params, chunk, scores, decays, channel) +
                   passing * params.dots[slot * params.channels + channel];
        }
        sum = warp_sum(sum);
        if (lane_of_warp() == 0) {
            params.out[slot] = sum;
        }
    }

    // What a channel of the chunk's queries and keys adds.
    __device__ __forceinline__ static float of_steps(const HeadDecayParams& params,
                                                     const Chunk& chunk, const Scores& scores,
                                                     int decays, int channel) {
        const int head = static_cast<int>(blockIdx.y);
        const auto mapped = [&](const Rows& x, int step, int map) {
            return mapped_number(row_at<const Element>(x, step, head) + channel,
                                 static_cast<FeatureMap>(map));
        };
        const auto gradient = [&](const Rows& dx, int step) {
            return row_at<const float>(dx, step, head)[channel];
        };
        float keys[kChunk];
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
            const int step = chunk.start + j - params.shift;
            keys[j] = has_key(chunk, j) ? mapped(params.k, step, params.key_map) : 0.f;
        }
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < kChunk; ++j) {
            if (has_key(chunk, j)) {
                const float dk = gradient(params.dk, chunk.start + j - params.shift);
                sum += keys[j] * (static_cast<float>(chunk.steps - 1 - j) * dk);
            }
        }
#pragma unroll 1
        for (int i = 0; i < chunk.steps; ++i) {
            if (!has_query(params, chunk, i)) {
                continue;
            }
            // of what a row of scores and keys has in a gradient, and that gradient
            const auto add = [&](const Rows& x, int map, const Rows& dx, const float* row) {
                float within = 0.f;
#pragma unroll
                for (int j = 0; j < kChunk; ++j) {
                    within += row[j] * keys[j];
                }
                const int step = chunk.start + i;
                sum += mapped(x, step, map) *
                       (static_cast<float>(i + 1 - chunk.late) * gradient(dx, step) -
                        static_cast<float>(decays) * within);
            };
            add(params.q, params.query_map, params.dq, scores[0][i]);
            if (params.lookups.at != nullptr) {
                add(params.k, params.key_map, params.lookups, scores[1][i]);
            }
        }
        return sum;
    }

    // The chunk's scores with the decays between steps; 0 where there is no pair.
    __device__ __forceinline__ static void load_scores(const HeadDecayParams& params,
                                                       const Chunk& chunk, const Rows& pairs,
                                                       float (&scores)[kChunk][kChunk]) {
        if (pairs.at == nullptr) {
            return;
        }
#pragma unroll
        for (int n = lane_of_warp(); n < kChunk * kChunk; n += 32) {
            const int i = n / kChunk;
            const int j = n % kChunk;
            float score = 0.f;
            if (j < i && has_query(params, chunk, i)) {
                score = row_at<const float>(pairs, chunk.start + i, static_cast<int>(blockIdx.y))[j];
                if (params.faded == 0) {
                    score *= exp2_approx(chunk.exponent * static_cast<float>(i - j));
                }
            }
            scores[i][j] = score;
        }
    }

    __device__ __forceinline__ static bool has_key(const Chunk& chunk, int j) {
        return j >= chunk.late && j < chunk.steps;
    }
    __device__ __forceinline__ static bool has_query(const HeadDecayParams& params,
                                                     const Chunk& chunk, int i) {
        return i < chunk.steps - (chunk.last ? params.shift : 0);
    }
};

}  // namespace seqmix::linear_attention
