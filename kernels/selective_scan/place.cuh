// Which channels and steps of a scan a block works on.
//
// grid    x: blocks of channels, of each sequence in turn; y: segments of a sequence
//
// The steps of all sequences lie in tiles of equal length that are counted from the tensor's first
// step, so that whatever is aligned in one tile is in all. A sequence begins and ends anywhere in a
// tile. Its tiles are taken in the order of the scan, from the last to the first if it is reversed.
#pragma once

#include <cstdint>

#include "selective_scan/params.h"

namespace seqmix::selective_scan {

struct Place {
    const Scan& scan;
    int batch;
    int sequence;
    int start;  // steps of the sequence
    int end;
    int group;
    int channel;   // the block's first
    int channels;  // of the block; fewer at the end of a group
    int segment;
    int first;  // tiles of the segment, in the order of the scan
    int last;   // the one after
    int origin;  // the scan's first tile, in the tensor

    // Where tile `order` of the scan lies in the tensor.
    __device__ __forceinline__ int tile(int order) const {
        return scan.reverse ? origin - order : origin + order;
    }

    // Where the channels of a segment begin among those of all segments of all sequences.
    __device__ __forceinline__ int64_t row_of_segment(int index) const {
        return (int64_t{sequence} * scan.segments + index) * scan.dim;
    }

    // Whether the sequence has this step of its tensor.
    __device__ __forceinline__ bool holds(int step) const { return step >= start && step < end; }
};

__device__ __forceinline__ int ceil_divide(int a, int b) { return (a + b - 1) / b; }

// The place of this block, whose tiles have `steps` steps. Values of cu_seqlens come from the device's
// memory, where nobody has checked them: they are clamped to the tensor's steps.
template <int Channels>
__device__ __forceinline__ Place place_of_block(const Scan& scan, int steps) {
    const int channels_of_group = scan.dim / scan.groups;
    const int blocks_of_group = ceil_divide(channels_of_group, Channels);
    const int blocks = blocks_of_group * scan.groups;
    const int sequence = static_cast<int>(blockIdx.x) / blocks;
    const int block = static_cast<int>(blockIdx.x) - sequence * blocks;
    Place place = {scan};
    place.sequence = sequence;
    place.group = block / blocks_of_group;
    const int channel = (block - place.group * blocks_of_group) * Channels;
    place.channel = place.group * channels_of_group + channel;
    place.channels = min(channels_of_group - channel, Channels);
    if (scan.cu_seqlens == nullptr) {
        place.batch = sequence;
        place.start = 0;
        place.end = scan.seqlen;
    } else {
        place.batch = 0;
        place.start = min(max(scan.cu_seqlens[sequence], 0), scan.seqlen);
        place.end = min(max(scan.cu_seqlens[sequence + 1], place.start), scan.seqlen);
    }
    const int first_tile = place.start / steps;
    const int end_tile = place.end > place.start ? ceil_divide(place.end, steps) : first_tile;
    const int tiles = end_tile - first_tile;
    const int tiles_of_segment = ceil_divide(tiles, scan.segments);
    place.segment = static_cast<int>(blockIdx.y);
    place.first = min(place.segment * tiles_of_segment, tiles);
    place.last = min(place.first + tiles_of_segment, tiles);
    place.origin = scan.reverse ? end_tile - 1 : first_tile;
    return place;
}

}  // namespace seqmix::selective_scan
