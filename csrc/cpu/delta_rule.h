// The kernel of DeltaRule (common/step_states.h) on one row and head; one table per instruction set.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace atk {

struct DeltaRuleKernel {
  // state [K, V] is updated; decay_i lies `decay_stride` floats behind the one before.
  void (*run)(float* state, const float* decay, int64_t decay_stride, const float* q, const float* k, const float* v,
              float beta, float* out, int64_t K, int64_t V, int64_t plain);
};

}  // namespace atk

ATK_DECLARE_ISA_TABLE(DeltaRuleKernel, delta_rule_kernel)
