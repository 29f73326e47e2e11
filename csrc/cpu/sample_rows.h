// Kernels on a run of one row's logits, for sample; one table per instruction set.
#pragma once

#include <cstdint>

#include "common/sample_draw.h"
#include "common/view.h"
#include "cpu/isa.h"

namespace atk {

constexpr int kRun = 256;

// A run of a row: logits of tokens [first, first + n), n <= kRun, and what makes weights of them.
struct LogitRun {
  const void* logits;  // of token `first`
  int32_t first, n;
  float max, temperature;
};

struct SampleKernels {
  struct Peak {
    uint32_t key;        // the largest
    uint32_t magnitude;  // the largest of bits without their sign: above infinity's where there is a NaN
  };

  struct Typed {
    Peak (*peak)(const void* logits, int64_t n);
    // The sum of Kept::weight.
    uint64_t (*weigh)(const LogitRun& run, const Kept& kept);
    // The first token whose weight, with all before it and `before`, is more than `drawn`; -1 if none.
    int32_t (*find)(const LogitRun& run, const Kept& kept, uint64_t before, uint64_t drawn);
    // Adds the number, or the weight, of tokens within `kept` (whatever its `least`) whose key agrees with `prefix`
    // above a digit to the bins [kBins] of that digit.
    using AddDigits = void (*)(const LogitRun& run, const Kept& kept, uint64_t* bins, uint32_t prefix, int digit);
    AddDigits count_digits, weigh_digits;
    // How many logits equal `value`, and what one such logit weighs.
    int32_t (*count)(const LogitRun& run, float value);
    uint64_t (*weight)(const LogitRun& run, float value);
  };

  Typed f32, bf16, f16;

  const Typed& of(DType dtype) const { return dtype == DType::bf16 ? bf16 : dtype == DType::f16 ? f16 : f32; }
};

}  // namespace atk

ATK_DECLARE_ISA_TABLE(SampleKernels, sample_kernels)
