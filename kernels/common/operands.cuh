// Numbers in pairs, as the operands of products hold them: elements of 16 bits, which tensor cores
// multiply as they are, and f32, which they multiply as sums of three bfloat16.
//
// An f32 has 24 bits and a bfloat16 has 8 of the same range, so three of them are one f32. Of their
// nine products six count; what is left out is below 2^-24 of the product. All operands lie in lanes
// as those of 16 bits do, and tiles of f32 are read by plain loads in the place of ldmatrix.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/mma.cuh"
#include "common/numeric.cuh"
#include "common/tile.cuh"
#include "common/warp.cuh"

namespace seqmix {

// A tile of f32, as that of 16-bit elements: rows of chunks of 16 bytes.
//
// Products read pairs of a row's numbers in four rows at a time, neighbouring or two apart, and
// numbers of a column: the swizzle differs by two chunks or more among rows 0 to 3, 4 to 7, the even
// and the odd ones.
template <int Rows, int Dim>
struct alignas(128) Tile<float, Rows, Dim> {
    using Element = float;
    static constexpr int kRows = Rows;
    static constexpr int kChunkElements = 4;
    static constexpr int kChunks = Dim / kChunkElements;
    static constexpr int kSpan = 8;
    static_assert(kChunks % kSpan == 0, "a row is a multiple of 128 bytes");

    float elements[Rows * Dim];

    __device__ __forceinline__ static int swizzle(int row) {
        return 2 * ((row / 2 + row % 2 * 2) % 4);
    }

    __device__ __forceinline__ static int offset(int row, int chunk) {
        return 16 * (row * kChunks + (chunk ^ swizzle(row)));
    }

    __device__ __forceinline__ uint32_t address(int row, int chunk) const {
        return shared_address(elements) + offset(row, chunk);
    }
};

// Two neighbours, in memory and in an operand.
template <typename Element>
using Pair = std::conditional_t<std::is_same_v<Element, float>, float2, uint32_t>;

template <typename Element>
__device__ __forceinline__ Pair<Element> join(float low, float high) {
    if constexpr (std::is_same_v<Element, float>) {
        return make_float2(low, high);
    } else {
        return pack<Element>(low, high);
    }
}

template <typename Element>
__device__ __forceinline__ float2 part(const Pair<Element>& pair) {
    if constexpr (std::is_same_v<Element, float>) {
        return pair;
    } else {
        float2 both;
        unpack<Element>(both.x, both.y, pair);
        return both;
    }
}

// A number, as a float. Its bits are read here, so that a fault names this line and no header of CUDA.
template <typename Element>
__device__ __forceinline__ float load(const Element* from) {
    if constexpr (std::is_same_v<Element, float>) {
        return *from;
    } else {
        return part<Element>(*reinterpret_cast<const uint16_t*>(from)).x;
    }
}

// Pairs of 16 bytes, read or written by one access.
template <typename Element>
struct alignas(16) Pairs {
    static constexpr int kCount = 16 / sizeof(Pair<Element>);
    Pair<Element> values[kCount];

    __device__ __forceinline__ static Pairs load(const void* from) {
        const auto four = *static_cast<const uint4*>(from);
        Pairs pairs;
        if constexpr (std::is_same_v<Element, float>) {
            pairs.values[0] = make_float2(__uint_as_float(four.x), __uint_as_float(four.y));
            pairs.values[1] = make_float2(__uint_as_float(four.z), __uint_as_float(four.w));
        } else {
            pairs.values[0] = four.x;
            pairs.values[1] = four.y;
            pairs.values[2] = four.z;
            pairs.values[3] = four.w;
        }
        return pairs;
    }

    __device__ __forceinline__ void store(void* to) const {
        if constexpr (std::is_same_v<Element, float>) {
            *static_cast<float4*>(to) =
                make_float4(values[0].x, values[0].y, values[1].x, values[1].y);
        } else {
            *static_cast<uint4*>(to) = make_uint4(values[0], values[1], values[2], values[3]);
        }
    }
};

// The pair of a tile's row that begins at an even column.
template <typename T>
__device__ __forceinline__ const Pair<typename T::Element>& pair_of(const T& tile, int row,
                                                                    int column) {
    constexpr int kElements = T::kChunkElements;
    const auto* bytes = reinterpret_cast<const unsigned char*>(tile.elements);
    return *reinterpret_cast<const Pair<typename T::Element>*>(
        bytes + T::offset(row, column / kElements) +
        static_cast<int>(sizeof(typename T::Element)) * (column % kElements));
}

template <typename T>
__device__ __forceinline__ Pair<typename T::Element>& pair_of(T& tile, int row, int column) {
    return const_cast<Pair<typename T::Element>&>(
        pair_of(static_cast<const T&>(tile), row, column));
}

// Parts of 16x16 elements of 16 bits.
template <typename T>
struct HalfOperand {
    Operand<T> operand;

    // The part `row` rows further down, in columns `16 * step` and following.
    __device__ __forceinline__ void load(uint32_t (&to)[4], int row, int step) const {
        load_matrices(to, operand.address(row, step));
    }
    __device__ __forceinline__ void load_transposed(uint32_t (&to)[4], int row, int step) const {
        load_matrices_transposed(to, operand.address(row, step));
    }
};

// The same of f32. Offsets are bytes from the tile's start, in the part in its upper left corner.
template <typename T>
struct SingleOperand {
    const T& tile;
    bool by_rows;
    int pair;    // of the pair that this lane reads
    int even;    // of the two numbers of a column that it reads transposed, in an even row
    int odd;     // and in the next one

    __device__ __forceinline__ SingleOperand(const T& tile, int row, int column, bool by_rows)
        : tile(tile), by_rows(by_rows) {
        const int quad = lane_of_warp() / 4;
        const int lane = lane_of_warp() % 4;
        const int chunk = column / 4;
        pair = T::offset(row + quad, chunk + lane / 2) + 8 * (lane % 2);
        even = T::offset(row + 2 * lane, chunk + quad / 4) + 4 * (quad % 4);
        odd = T::offset(row + 2 * lane + 1, chunk + quad / 4) + 4 * (quad % 4);
    }

    __device__ __forceinline__ void load(float2 (&to)[4], int down, int step) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            to[i] = *at<float2>(pair, down, step, i);
        }
    }
    __device__ __forceinline__ void load_transposed(float2 (&to)[4], int down, int step) const {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            to[i] = make_float2(*at<float>(even, down, step, i), *at<float>(odd, down, step, i));
        }
    }

    // In the i-th 8x8 matrix, two chunks wide, of a part, four chunks wide; the swizzle permutes two
    // parts.
    template <typename X>
    __device__ __forceinline__ const X* at(int offset, int down, int step, int i) const {
        const int lower = by_rows ? i % 2 : i / 2;
        const int right = by_rows ? i / 2 : i % 2;
        const auto* bytes = reinterpret_cast<const unsigned char*>(tile.elements);
        return reinterpret_cast<const X*>(bytes + (offset ^ (64 * (step % 2) + 32 * right)) +
                                          16 * ((down + 8 * lower) * T::kChunks + step / 2 * 8));
    }
};

// As operand_by_rows and operand_by_columns in common/mma.cuh, for every type of elements.
template <typename T>
__device__ __forceinline__ auto by_rows(const T& tile, int row, int column = 0) {
    if constexpr (std::is_same_v<typename T::Element, float>) {
        return SingleOperand<T>(tile, row, column, true);
    } else {
        return HalfOperand<T>{operand_by_rows(tile, row, column)};
    }
}

template <typename T>
__device__ __forceinline__ auto by_columns(const T& tile, int row, int column = 0) {
    if constexpr (std::is_same_v<typename T::Element, float>) {
        return SingleOperand<T>(tile, row, column, false);
    } else {
        return HalfOperand<T>{operand_by_columns(tile, row, column)};
    }
}

// How many bfloat16 a number of an operand is the sum of.
constexpr int kTerms = 3;

// A pair as that sum, the largest term first.
__device__ __forceinline__ void split(uint32_t (&terms)[kTerms], float2 pair) {
#pragma unroll
    for (int i = 0; i < kTerms; ++i) {
        terms[i] = pack<__nv_bfloat16>(pair.x, pair.y);
        const float2 rounded = part<__nv_bfloat16>(terms[i]);
        pair.x -= rounded.x;
        pair.y -= rounded.y;
    }
}

// c += a b, accumulated in f32.
template <typename Element>
__device__ __forceinline__ void multiply_pairs(float (&c)[4], const Pair<Element> (&a)[4],
                                               Pair<Element> b0, Pair<Element> b1) {
    if constexpr (std::is_same_v<Element, float>) {
        uint32_t left[kTerms][4];
        uint32_t right[kTerms][2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t terms[kTerms];
            split(terms, a[i]);
#pragma unroll
            for (int term = 0; term < kTerms; ++term) {
                left[term][i] = terms[term];
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            uint32_t terms[kTerms];
            split(terms, i == 0 ? b0 : b1);
#pragma unroll
            for (int term = 0; term < kTerms; ++term) {
                right[term][i] = terms[term];
            }
        }
        // the smallest products first
#pragma unroll
        for (int order = kTerms - 1; order >= 0; --order) {
#pragma unroll
            for (int term = 0; term <= order; ++term) {
                multiply<__nv_bfloat16>(c, left[term], right[order - term][0],
                                        right[order - term][1]);
            }
        }
    } else {
        multiply<Element>(c, a, b0, b1);
    }
}

}  // namespace seqmix
