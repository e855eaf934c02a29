// Parameters of the attention kernels. src/abi/attention.rs holds the same structs in Rust; the
// stub of each kernel asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

namespace seqmix::attention {

struct ForwardParams {
    const void* q;              // [batch, rows_q, heads, head_dim]
    const void* k;              // [batch, rows_k, heads_kv, head_dim]
    const void* v;              // as k
    void* out;                  // as q
    float* lse;                 // [batch, heads, rows_q], or null
    const int* cu_seqlens_q;    // [batch + 1] first rows of the sequences, or null
    const int* cu_seqlens_k;    // [batch + 1], or null
    int64_t q_batch_stride;     // batch strides are 0 with cu_seqlens
    int64_t q_row_stride;
    int64_t q_head_stride;
    int64_t k_batch_stride;
    int64_t k_row_stride;
    int64_t k_head_stride;
    int64_t v_batch_stride;
    int64_t v_row_stride;
    int64_t v_head_stride;
    int64_t out_batch_stride;
    int64_t out_row_stride;
    int64_t out_head_stride;
    int64_t lse_batch_stride;
    int64_t lse_head_stride;
    int rows_q;                 // of each sequence; with cu_seqlens of all together
    int rows_k;
    int head_dim;               // multiple of 8, at most Dim
    int heads_per_kv;           // query heads that share a head of k and v
    int causal;                 // query i sees keys up to i + seq_k - seq_q; else all
    float scale_log2;           // softmax scale times log2(e)
};

}  // namespace seqmix::attention
