// Parameters of the matrix multiplication kernels. src/abi/gemm.rs holds the same structs in Rust;
// the stub of each kernel asserts that they agree. Strides count elements.
#pragma once

#include <cstdint>

namespace seqmix::gemm {

// A matrix, or one for each of a batch.
struct Matrix {
    void* at;  // null: there is none
    int64_t batch_stride;
    int64_t row_stride;     // of operands: along the axis that does not lie contiguously
    int64_t column_stride;  // 1, except for an adapter's matrix that lies the other way
    int vector;             // 1: address and strides are multiples of 16 bytes
    int dtype;              // an ElementType
};

struct MultiplyParams {
    Matrix a;              // [batch, m, k]
    Matrix b;              // [batch, k, n]
    Matrix gate;           // [batch, k, n]: of kGate
    Matrix down;           // [batch, k, rank]: of kernels with an adapter
    Matrix up;             // [batch, rank, n]
    Matrix c;              // [batch, m, n], or none
    Matrix bias;           // [batch, n], or none
    Matrix gate_bias;      // [batch, n], or none
    Matrix residual;       // [batch, m, n], or none
    Matrix row_scale;      // [batch, m] of f32, or none
    Matrix column_scale;   // [batch, n] of f32, or none
    Matrix preactivation;  // [batch, m, n] or [batch, m, 2 n], or none
    Matrix d;              // [batch, m, n] or [batch, m, 2 n]
    float* partial;        // [split, batch, m, n up to a multiple of 8], or null: no split of k
    float* column_sums;    // [batch, tile of rows, n], or null
    int* non_finite;       // [1], or null
    const int* offsets;    // [groups + 1], or null
    int m;
    int n;
    int k;
    int rank;
    int splits;
    int groups;
    int grouping;    // a Grouping
    int epilogue;    // an Epilogue
    int activation;  // an Activation
    int saturate;    // 1: the largest finite number stands for what is beyond it
    float alpha;
    float beta;
    float adapter_scale;
};

struct ColumnSumsParams {
    Matrix x;     // [matrix, row, column]
    float* sums;  // [part, column]
    int64_t rows;  // of all matrices
    int64_t rows_of_matrix;
    int64_t rows_of_part;
    int columns;
};

// src/abi/gemm.rs has the same numbers.
enum ElementType { kF16 = 0, kBf16 = 1, kF32 = 2 };
enum Grouping { kUngrouped = 0, kRows = 1, kDepth = 2 };
enum Activation { kNone = 0, kRelu = 1, kGeluTanh = 2, kGeluErf = 3, kSilu = 4 };
enum Epilogue { kActivate = 0, kGate = 1, kActivateBackward = 2, kGateBackward = 3 };

}  // namespace seqmix::gemm
