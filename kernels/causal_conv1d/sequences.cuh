// Which sequence a step belongs to.
//
// The first steps of packed sequences, and the end of the last, are boundaries 0 to `sequences`. They
// come from the device's memory, where nobody has checked them: each is clamped to the row, and all
// that is assumed of their order is checked where it matters for an address.
#pragma once

#include "causal_conv1d/params.h"

namespace seqmix::causal_conv1d {

// Steps `start` to `end` of a row. A gap before the first sequence or after the last has an index
// of -1.
struct Sequence {
    int start;
    int end;
    int index;
};

// Steps from `start` to `end`.
struct Range {
    int start;
    int end;

    __device__ __forceinline__ bool holds(int from, int to) const {
        return start <= from && to <= end;
    }

    // Those among the `steps` from `first` on, counted from there.
    __device__ __forceinline__ Range within(int first, int steps) const {
        return {max(start - first, 0), min(end - first, steps)};
    }
};

struct Sequences {
    const Packing& packing;
    int first;  // number of the row's first sequence among all of the batch
    int low;    // boundaries that enclose the steps of interest, the lower before the first of
    int high;   // them, the upper after the last; -1 and sequences + 1 stand for the row's ends

    __device__ __forceinline__ Sequences(const Packing& packing, int row)
        : packing(packing),
          first(packing.cu_seqlens == nullptr ? row : 0),
          low(-1),
          high(packing.sequences + 1) {}

    __device__ __forceinline__ int boundary(int index) const {
        if (packing.cu_seqlens == nullptr) {
            return index == 0 ? 0 : packing.seqlen;
        }
        return min(max(packing.cu_seqlens[index], 0), packing.seqlen);
    }

    // The steps that belong to sequences.
    __device__ __forceinline__ Range cover() const {
        return {boundary(0), boundary(packing.sequences)};
    }

    // The last boundary between `from` and `to` that is at most at `step`; `from` if none is.
    __device__ __forceinline__ int last_boundary(int step, int from, int to) const {
#pragma unroll 1
        while (to - from > 1) {
            const int middle = from + (to - from) / 2;
            (boundary(middle) <= step ? from : to) = middle;
        }
        return from;
    }

    // Restricts searches to the steps from `from` to `to`: boundaries within these two, both
    // included, are those from low + 1 to high - 1.
    __device__ __forceinline__ void narrow(int from, int to) {
        if (packing.cu_seqlens == nullptr) {
            low = from > 0 ? 0 : -1;
            high = to < packing.seqlen ? 1 : 2;
            return;
        }
        low = last_boundary(from - 1, -1, packing.sequences + 1);
        high = last_boundary(to, low, packing.sequences + 1) + 1;
    }

    // The sequence or gap of a step of the row. It holds the step whatever the boundaries are.
    __device__ __forceinline__ Sequence at(int step) const {
        const int index = last_boundary(step, low, high);
        const bool inside = index >= 0 && index < packing.sequences;
        return {index < 0 ? 0 : boundary(index),
                index < packing.sequences ? boundary(index + 1) : packing.seqlen,
                inside ? first + index : -1};
    }
};

}  // namespace seqmix::causal_conv1d
