// Parameters of the kernels of the delta rule; src/abi/linear_attention/delta.rs holds the same structs in
// Rust. Strides count elements.
#pragma once

#include <cstdint>

#include "linear_attention/params.h"

namespace seqmix::linear_attention {

struct DeltaParams {
    WalkParams walk;  // in one segment a sequence
    Rows beta;        // [batch, steps, heads]
    Rows errors;      // [batch, steps, heads, dv]: E, written, and `walk.out` is U then; or none, and it is O
};

}  // namespace seqmix::linear_attention
