// The kernel of ConvUpdate (common/step_states.h) on channels of one row; one table per instruction set.
#pragma once

#include <cstdint>

#include "common/view.h"
#include "cpu/isa.h"

namespace atk {

struct ConvUpdateKernels {
  // state [C, K], x and y at every so many elements, weight [C, K]; bias [C] and table may be null.
  using Run = void (*)(void* state, const void* x, int64_t x_stride, const void* weight, const void* bias,
                       const void* table, void* y, int64_t y_stride, int64_t C, int64_t K, bool fused);

  Run f32, bf16, f16;

  Run of(DType dtype) const { return dtype == DType::bf16 ? bf16 : dtype == DType::f16 ? f16 : f32; }
};

}  // namespace atk

ATK_DECLARE_ISA_TABLE(ConvUpdateKernels, conv_update_kernels)
