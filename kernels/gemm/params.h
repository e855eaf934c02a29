// Parameters of the matrix multiplication kernels. src/abi/gemm.rs holds the same structs in Rust;
// the stub of each kernel asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

namespace seqmix::gemm {

struct MultiplyParams {
    const void* a;         // [batch, m, k]
    const void* b;         // [batch, k, n]
    const void* c;         // [batch, m, n], or null
    const void* bias;      // [n], or null
    const void* residual;  // [batch, m, n], or null
    void* d;               // [batch, m, n] of type d_type
    int64_t a_batch_stride;
    int64_t a_stride;      // along the axis of a that does not lie contiguously
    int64_t b_batch_stride;
    int64_t b_stride;
    int64_t c_batch_stride;
    int64_t c_row_stride;
    int64_t residual_batch_stride;
    int64_t residual_row_stride;
    int64_t d_batch_stride;
    int64_t d_row_stride;
    int m;
    int n;
    int k;
    int a_vector;          // 1: address and strides are multiples of 16 bytes
    int b_vector;
    int c_vector;
    int bias_vector;
    int residual_vector;
    int d_vector;
    int d_type;            // an OutputType
    int activation;        // an Activation
    float alpha;
    float beta;
};

}  // namespace seqmix::gemm
