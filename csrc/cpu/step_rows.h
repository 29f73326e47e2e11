// Kernels of common/step_rows.h on one row; one table per instruction set.
#pragma once

#include "common/step_rows.h"
#include "cpu/isa.h"

namespace atk {

struct StepRowKernels {
  struct Typed {
    void (*norm)(const void* x, const void* weight, void* y, int64_t I, float eps, int lanes, bool wide, float offset);
    void (*l2_norm)(const void* x, float* y, int64_t I, float eps, float divisor, int lanes);
    void (*rotate)(const void* x, const void* cos, const void* sin, void* y, int64_t D);
    void (*gate)(const void* gate, const void* up, const void* table, void* y, int64_t I);       // null for float32
    void (*gate_wide)(const void* x, const void* gate, const float* table, void* y, int64_t I);  // null for float32
    void (*add)(const void* a, const void* b, void* y, int64_t I);
  };

  Typed f32, bf16, f16;

  const Typed& of(DType dtype) const { return dtype == DType::bf16 ? bf16 : dtype == DType::f16 ? f16 : f32; }
};

}  // namespace atk

ATK_DECLARE_ISA_TABLE(StepRowKernels, step_row_kernels)
