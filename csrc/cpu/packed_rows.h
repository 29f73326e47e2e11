// Kernels of packed_linear: products of a few rows with a block of weights; one table per instruction set. A row's sums
// run from the first input to the last, whatever rows stand beside it.
#pragma once

#include <cstdint>

#include "common/packed_linear.h"
#include "common/view.h"
#include "cpu/isa.h"

namespace atk {

// One block of 32 outputs.
struct PackedBlock {
  const void* weights;  // [I, 32], or [I / 2, 32, 2]
  const void* bias;     // [outputs], or null
  int64_t I;
  int outputs;  // of the 32, those that there are
};

struct PackedKernels {
  // out [rows, outputs] of x [rows, I]; strides are in elements.
  using Multiply = void (*)(const void* x, int64_t x_stride, int64_t rows, const PackedBlock& block, void* out,
                            int64_t out_stride);
  Multiply f32, bf16;

  Multiply of(DType dtype) const { return dtype == DType::bf16 ? bf16 : f32; }
};

}  // namespace atk

ATK_DECLARE_ISA_TABLE(PackedKernels, packed_kernels)
