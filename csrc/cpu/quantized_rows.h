// Kernels of quantized_linear: rows of activations to integers, and their products with a block of weights; one table
// per instruction set. Sums of products of integers are exact, and the floating-point operations behind them are the
// same, one by one, in every set: a result does not depend on the number of rows, on threads, or on the processor.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/quantized_linear.h"
#include "common/view.h"
#include "cpu/isa.h"

namespace atk {

// Rows of activations, in groups of 32: x = scale * integer, |integer| <= 127. `term` is what the weights' zero point
// or offset takes from the sum s of a group's integers: the bits of int32 -zero * s, or of float scale * s. Eight rows
// lie side by side, so that a kernel finds them all at constant distances from one address.
struct QuantRows {
  static constexpr int64_t kTile = 8;

  int8_t* integers;  // [ceil(T / 8), G, 8, 32]
  float* scales;     // [ceil(T / 8), G, 8]
  int32_t* terms;    // [ceil(T / 8), G, 8]
  int64_t G;

  // Where group g of row t lies in scales and terms, and times 32 in integers.
  int64_t at(int64_t t, int64_t g) const { return (t / kTile * G + g) * kTile + t % kTile; }

  static int64_t padded(int64_t T) { return (T + kTile - 1) / kTile * kTile; }
};

// One block of 16 outputs.
struct QuantBlock {
  const uint8_t* quants;  // [G, B, 64]
  const f16* scales;      // [G, 16]
  const f16* mins;        // [G, 16], or null
  const float* bias;      // [outputs], or null
  int outputs;            // of the 16, those that there are
};

struct QuantKernels {
  struct Typed {
    // Row t of x [I] to integers. `zero` is the weights' zero point; -1: they have an offset.
    void (*quantize)(const void* x, int64_t I, const QuantRows& to, int64_t t, int zero);
    // out [rows, outputs] of rows [t, t + rows); out_stride is in elements.
    using Multiply = void (*)(const QuantRows& x, int64_t t, int64_t rows, const QuantBlock& block, void* out,
                              int64_t out_stride);
    Multiply multiply8, multiply4, multiply4_offset;
  };

  Typed f32, bf16, f16;

  const Typed& of(DType dtype) const { return dtype == DType::bf16 ? bf16 : dtype == DType::f16 ? f16 : f32; }
};

}  // namespace atk

ATK_DECLARE_ISA_TABLE(QuantKernels, quant_kernels)
