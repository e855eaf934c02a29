// Queries and keys, made of z in shared memory: gamma z + beta, each channel by itself.
#pragma once

#include "common/operands.cuh"
#include "common/warp.cuh"
#include "gated_attention_unit/params.h"

namespace seqmix::gated_attention_unit {

// gamma and beta of the channels of a tile, zeros behind the last one: so is what they make.
template <typename Element, int Size>
struct alignas(16) Coefficients {
    static constexpr int kElements = 16 / sizeof(Element);
    static constexpr int kChunks = Size / kElements;
    // A thread reads four numbers of a chunk at a time, and its neighbour those of the next chunk. The
    // second four lie behind the first four of all chunks, and half of the banks further.
    static constexpr int kFourStride = 4 * kChunks + 16;

    float gamma[Size + 16];
    float beta[Size + 16];

    __device__ __forceinline__ static int place(int channel) {
        const int four = channel % kElements / 4;
        return four * kFourStride + channel / kElements * 4 + channel % 4;
    }

    template <int Threads>
    __device__ __forceinline__ void load(const Affine& by, int dz) {
        for (int i = thread_of_block(); i < Size; i += Threads) {
            gamma[place(i)] = i < dz ? by.gamma[i] : 0.f;
            beta[place(i)] = i < dz ? by.beta[i] : 0.f;
        }
    }

    // Makes queries or keys of a tile of z, in place.
    template <int Threads, typename T>
    __device__ __forceinline__ void apply(T& tile) const {
        static_assert(Threads % kChunks == 0, "a thread keeps to one chunk of each row");
        constexpr int kStep = Threads / kChunks;
        static_assert(T::kRows % kStep == 0, "all threads take equally many rows");
        const int chunk = thread_of_block() % kChunks;
        float4 factors[kElements / 4];
        float4 addends[kElements / 4];
#pragma unroll
        for (int four = 0; four < kElements / 4; ++four) {
            const int at = four * kFourStride + 4 * chunk;
            factors[four] = *reinterpret_cast<const float4*>(gamma + at);
            addends[four] = *reinterpret_cast<const float4*>(beta + at);
        }
        auto* bytes = reinterpret_cast<unsigned char*>(tile.elements);
#pragma unroll
        for (int pass = 0; pass < T::kRows / kStep; ++pass) {
            const int row = pass * kStep + thread_of_block() / kChunks;
            auto* at = bytes + T::offset(row, chunk);
            auto pairs = Pairs<Element>::load(at);
#pragma unroll
            for (int i = 0; i < Pairs<Element>::kCount; ++i) {
                const float2 z = part<Element>(pairs.values[i]);
                const float4 factor = factors[i / 2];
                const float4 addend = addends[i / 2];
                pairs.values[i] = i % 2 == 0 ? join<Element>(fmaf(factor.x, z.x, addend.x),
                                                             fmaf(factor.y, z.y, addend.y))
                                             : join<Element>(fmaf(factor.z, z.x, addend.z),
                                                             fmaf(factor.w, z.y, addend.w));
            }
            pairs.store(at);
        }
    }
};

}  // namespace seqmix::gated_attention_unit
