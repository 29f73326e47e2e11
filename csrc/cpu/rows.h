// Kernels on one row of a tensor, for the ops that are bound by memory bandwidth; one table per instruction set.
#pragma once

#include <cstdint>

#include "common/view.h"
#include "cpu/isa.h"

namespace atk {

struct RowKernels {
  // dst[0:D] = src[0:D] with the first 2R dims rotated by the angles (cos[i], sin[i]).
  using Rotate = void (*)(void* dst, const void* src, int64_t D, const float* cos, const float* sin, int64_t R);
  // sum[0:D] += weight * row[0:D], float32 sum.
  using AddScaled = void (*)(float* sum, const void* row, int64_t D, float weight);
  // dst[0:D] = sum[0:D]
  using Store = void (*)(void* dst, const float* sum, int64_t D);

  struct Typed {
    Rotate rotate_half_split, rotate_interleaved;
    AddScaled add_scaled;
    Store store;
  };

  Typed f32, bf16, f16;

  const Typed& of(DType dtype) const { return dtype == DType::bf16 ? bf16 : dtype == DType::f16 ? f16 : f32; }
};

}  // namespace atk

ATK_DECLARE_ISA_TABLE(RowKernels, row_kernels)
