// B and C: how a block copies their tiles, which all its channels share, and where it keeps them.
//
// A tile is `Floats` numbers of each of its steps, in the order of the scan. What a thread copies, 16
// bytes at a time, goes to slots of its own first, so that the next tile can be on its way while the
// floats of the last one are read. Constant coefficients are rows of channels that are read once.
#pragma once

#include <cstdint>

#include "common/warp.cuh"
#include "selective_scan/chunk.cuh"
#include "selective_scan/number.cuh"
#include "selective_scan/params.h"
#include "selective_scan/place.cuh"

namespace seqmix::selective_scan {

// Whether B and C vary from step to step, or each may also be constant.
enum class Source { Variable, Any };

// Which of the two.
enum class Side { B, C };

template <typename Number, int Floats, int Channels, int RowBytes, int Threads, Source Of>
struct Coefficients {
    static constexpr int kMaxSteps = RowBytes / 2;
    static constexpr int kChunksOfRow = RowBytes / kChunkBytes;  // along steps
    // Chunks of a tile of one of the two: along steps, or along states if a chunk is not filled.
    static constexpr int kAlongSteps = Floats * kChunksOfRow;
    static constexpr int kChunks = kAlongSteps > kMaxSteps ? kAlongSteps : kMaxSteps;
    static constexpr int kPieces = (2 * kChunks + Threads - 1) / Threads;
    static_assert(kChunks % 32 == 0, "a warp copies B or C");

    // Steps of neighbouring chunks lie this much further in shared memory, so that chunks along steps
    // have no bank conflicts. Those along states have none if all lies side by side.
    static constexpr int kShift = Floats < 16 ? Floats : 16;
    __device__ __forceinline__ static int shift(int kind) {
        return kind == kAlongStates ? 0 : kShift;
    }
    // Rows of constants: those of neighbouring channels begin on different halves of the banks.
    static constexpr int kConstantPitch = Floats + 16;

    static constexpr int kVariableFloats = kMaxSteps * Floats + kShift * (kChunksOfRow - 1);
    static constexpr int kConstantFloats = Of == Source::Any ? Channels * kConstantPitch : 0;

    static constexpr int kSideFloats =
        kVariableFloats > kConstantFloats ? kVariableFloats : kConstantFloats;

    struct alignas(16) Smem {
        float at[2][kSideFloats];
        uint4 slots[kPieces][Threads];
    };

    // Where a thread finds the numbers of its channel, counted from `at`.
    struct Rows {
        int first;
        int step_pitch;   // from one step to the next in one chunk
        int chunk_shift;  // and what comes on top from one chunk to the next

        // Those of the step at this position, in the chunk of this number.
        __device__ __forceinline__ const float* of_step(const Smem& smem, int position,
                                                        int chunk) const {
            return smem.at[0] + first + position * step_pitch + chunk * chunk_shift;
        }
    };

    __device__ __forceinline__ static Rows rows(const Coefficient& coefficient, Side side,
                                                int channel) {
        const int first = side == Side::C ? kSideFloats : 0;
        if (Of == Source::Any && coefficient.kind == kConstant) {
            return {first + channel * kConstantPitch, 0, 0};
        }
        return {first, Floats, shift(coefficient.kind)};
    }

    // Fills the rows of what is constant; the block's threads read them after a barrier.
    __device__ __forceinline__ static void load_constants(Smem& smem, const Scan& scan,
                                                          const Place& place) {
        if constexpr (Of == Source::Any) {
            load_constant(smem, scan.b, Side::B, scan, place);
            load_constant(smem, scan.c, Side::C, scan, place);
        }
    }

    __device__ __forceinline__ static void load_constant(Smem& smem,
                                                         const Coefficient& coefficient, Side side,
                                                         const Scan& scan, const Place& place) {
        if (coefficient.kind != kConstant) {
            return;
        }
        const auto* from = static_cast<const float*>(coefficient.at);
        for (int i = thread_of_block(); i < Channels * Floats; i += Threads) {
            const int channel = i / Floats;
            const int state = i % Floats;
            float x = 0.f;
            if (channel < place.channels && state < scan.states) {
                x = from[(int64_t{place.channel} + channel) * coefficient.group_stride +
                         state * coefficient.state_stride];
            }
            smem.at[side == Side::C][channel * kConstantPitch + state] =
                side == Side::C ? x * readout<Number>(state) : x;
        }
    }

    // A chunk of one of the two.
    struct Piece {
        Side side;
        int step;   // the first, in the tile
        int state;  // the first
        bool exists;
    };

    __device__ __forceinline__ static Piece piece(const Scan& scan, int index) {
        const int bits = element_bits(scan.u.dtype);
        const int number = index * Threads + thread_of_block();
        const int chunk = number % kChunks;
        Piece piece;
        piece.side = number < kChunks ? Side::B : Side::C;
        const Coefficient& coefficient = piece.side == Side::B ? scan.b : scan.c;
        if (coefficient.kind == kAlongStates) {
            const int of_row = max(Floats >> bits, 1) - 1;  // a power of two less 1
            piece.step = chunk >> __popc(of_row);
            piece.state = (chunk & of_row) << bits;
        } else {
            // neighbouring states, and of those two neighbouring chunks: whole sectors
            constexpr int kStates = kChunksOfRow == 1 ? 32 : 16;
            constexpr int kLanes = Floats < kStates ? Floats : kStates;
            constexpr int kGroups = Floats / kLanes;
            const int group = chunk / 32;
            piece.state = group % kGroups * kLanes + chunk % kLanes;
            piece.step = (group / kGroups * (32 / kLanes) + chunk % 32 / kLanes) << bits;
        }
        piece.exists = number < 2 * kChunks && piece.step < kChunksOfRow << bits &&
                       coefficient.kind != kConstant;
        return piece;
    }

    // Starts the copies of a tile.
    __device__ __forceinline__ static void start(Smem& smem, const Scan& scan, const Place& place,
                                                 int tile) {
        const int bytes = bytes_of(scan.u.dtype);
        const int steps = kChunksOfRow << element_bits(scan.u.dtype);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const Piece piece = Coefficients::piece(scan, i);
            if (!piece.exists) {
                continue;
            }
            const Coefficient& from = piece.side == Side::B ? scan.b : scan.c;
            const int step = tile * steps + piece.step;
            const bool along_states = from.kind == kAlongStates;
            const int states_left = scan.states - piece.state;
            const int steps_left = scan.seqlen - step;
            const int count = along_states ? (steps_left > 0 ? states_left : 0)
                                           : (states_left > 0 ? steps_left : 0);
            const int64_t offset = place.batch * from.batch_stride +
                                   place.group * from.group_stride +
                                   piece.state * from.state_stride + step * from.step_stride;
            start_chunk(smem.slots[i][thread_of_block()],
                        static_cast<const unsigned char*>(from.at) + offset * bytes, count,
                        along_states ? from.state_stride : from.step_stride, from.vector, bytes);
        }
    }

    // Writes the floats of what this thread copied: zeros for steps that are not the sequence's.
    __device__ __forceinline__ static void finish(Smem& smem, const Scan& scan, const Place& place,
                                                  int tile) {
        const int bits = element_bits(scan.u.dtype);
        const int elements = 1 << bits;
        const int steps = kChunksOfRow << bits;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const Piece piece = Coefficients::piece(scan, i);
            if (!piece.exists) {
                continue;
            }
            const bool is_c = piece.side == Side::C;
            const bool along_states = (is_c ? scan.c : scan.b).kind == kAlongStates;
            float x[kMaxElements];
            widen(x, smem.slots[i][thread_of_block()], scan.u.dtype);
#pragma unroll
            for (int j = 0; j < kMaxElements; ++j) {
                const int step = tile * steps + piece.step + (along_states ? 0 : j);
                const float factor = is_c ? readout<Number>(along_states ? j : piece.state) : 1.f;
                x[j] = place.holds(step) ? x[j] * factor : 0.f;
            }
            const auto position = [&](int step) { return scan.reverse ? steps - 1 - step : step; };
            if (along_states) {
                // of 16 bytes at a time, half of the lanes write the second ones first: each bank once
                const int first = position(piece.step) * Floats + piece.state;
                auto* to = reinterpret_cast<float4*>(smem.at[is_c]) + first / 4;
                const bool two = elements == kMaxElements && Floats >= kMaxElements;
                const bool second = two && lane_of_warp() / 4 % 2 != 0;
                const float4 low = make_float4(x[0], x[1], x[2], x[3]);
                const float4 high = make_float4(x[4], x[5], x[6], x[7]);
                to[second] = second ? high : low;
                if (two) {
                    to[!second] = second ? low : high;
                }
            } else {
#pragma unroll
                for (int j = 0; j < kMaxElements; ++j) {
                    if (j < elements) {
                        const int at = position(piece.step + j);
                        smem.at[is_c][at * Floats + (at >> bits) * kShift + piece.state] = x[j];
                    }
                }
            }
        }
    }
};

}  // namespace seqmix::selective_scan
