// Feature maps: functions of one number that queries and keys go through before they are multiplied.
#pragma once

#include "common/numeric.cuh"
#include "common/operands.cuh"
#include "common/pointwise.cuh"
#include "common/warp.cuh"
#include "linear_attention/place.cuh"

namespace seqmix::linear_attention {

// src/abi/linear_attention knows the numbers.
enum class FeatureMap { Identity, EluPlusOne, Relu, ReluSquared, Silu, Exp };

// exp(x)
__device__ __forceinline__ float exp_of(float x) {
    constexpr float kLog2ERest = 1.92596299e-8f;  // log2(e) less its nearest float
    // the product in two parts: in one, its rounding would be a relative error of the result; beyond
    // these bounds the result is 0 or infinite whatever the rest is
    const float size = x < -128.f ? -128.f : x > 128.f ? 128.f : x;
    const float product = size * kLog2E;
    const float rest = fmaf(size, kLog2ERest, fmaf(size, kLog2E, -product));
    const float y = exp2_approx(product);
    return fmaf(y, kLn2 * rest, y);
}

__device__ __forceinline__ float relu(float x) { return x < 0.f ? 0.f : x; }  // a NaN stays

__device__ __forceinline__ float map_of(FeatureMap map, float x) {
    switch (map) {
        case FeatureMap::EluPlusOne: return x > 0.f ? x + 1.f : exp_of(x);
        case FeatureMap::Relu: return relu(x);
        case FeatureMap::ReluSquared: return relu(x) * relu(x);
        case FeatureMap::Silu: return silu(x);
        case FeatureMap::Exp: return exp_of(x);
        default: return x;
    }
}

// The slope of the map at x; that of Relu at 0 is 0.
__device__ __forceinline__ float slope_of(FeatureMap map, float x) {
    switch (map) {
        case FeatureMap::EluPlusOne: return x > 0.f ? 1.f : exp_of(x);
        case FeatureMap::Relu: return x > 0.f ? 1.f : x <= 0.f ? 0.f : x;  // a NaN stays
        case FeatureMap::ReluSquared: return 2.f * relu(x);
        case FeatureMap::Silu: return silu_derivative(x);
        case FeatureMap::Exp: return exp_of(x);
        default: return 1.f;
    }
}

// Maps the 16 rows of a tile from `first` on in place, of which those from `lead` up to `rows`, and
// `columns` exist: what does not stays 0 whatever the map does to zeros. All lanes of a warp.
template <typename KeyTile>
__device__ __forceinline__ void map_rows(KeyTile& tile, FeatureMap map, int first, int rows,
                                         int columns, int lead = 0) {
    using Element = typename KeyTile::Element;
    constexpr int kElements = KeyTile::kChunkElements;
    if (map == FeatureMap::Identity) {
        return;
    }
    auto* bytes = reinterpret_cast<unsigned char*>(tile.elements);
#pragma unroll 1
    for (int i = lane_of_warp(); i < kChunk * KeyTile::kChunks; i += 32) {
        const int row = i / KeyTile::kChunks;
        const int chunk = i % KeyTile::kChunks;
        const int left = columns - chunk * kElements;
        if (row >= lead && row < rows && left > 0) {
            unsigned char* at = bytes + KeyTile::offset(first + row, chunk);
            auto pairs = Pairs<Element>::load(at);
#pragma unroll
            for (int pair = 0; pair < Pairs<Element>::kCount; ++pair) {
                const float2 both = part<Element>(pairs.values[pair]);
                pairs.values[pair] =
                    join<Element>(2 * pair < left ? map_of(map, both.x) : 0.f,
                                  2 * pair + 1 < left ? map_of(map, both.y) : 0.f);
            }
            pairs.store(at);
        }
    }
}

}  // namespace seqmix::linear_attention
