#include <algorithm>

#include "cpu/ops.h"
#include "cpu/quantized_rows.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kRowsPerItem = 64;           // with I inputs each, they stay in the second cache
constexpr int64_t kRowsPerDraw = 16;           // of activations made to integers
constexpr int64_t kBytesPerDraw = 32 << 10;    // of weights: long enough runs for the processor's prefetching
constexpr int64_t kWordsPerGroup = 8 + 1 + 1;  // integers, scale, term

int zero_point(const QuantizedLinear& a, int64_t B) {
  return a.mins ? -1 : B == 8 ? 128 : 8;
}

QuantRows rows_in(const View& workspace, int64_t T, int64_t G) {
  const int64_t groups = QuantRows::padded(T) * G;
  float* scales = workspace.as<float>();
  int32_t* terms = workspace.as<int32_t>() + groups;
  return {.integers = reinterpret_cast<int8_t*>(terms + groups), .scales = scales, .terms = terms, .G = G};
}

}  // namespace

int64_t quantized_linear_workspace(int64_t rows, int64_t in_features) {
  return QuantRows::padded(rows) * ((in_features + kQuantGroup - 1) / kQuantGroup) * kWordsPerGroup;
}

void quantized_linear(const QuantizedLinear& a, const View& workspace) {
  const Sizes sizes = a.check();
  const int64_t T = sizes["T"], I = sizes["I"], O = sizes["O"], N = sizes["N"], G = sizes["G"], B = sizes["B"];
  check_dtype("workspace", workspace, DType::f32);
  check_contiguous("workspace", workspace);
  const int64_t floats = workspace.ndim == 1 ? workspace.shape[0] : 0;
  if (floats < quantized_linear_workspace(T, I))
    fail("workspace", std::to_string(quantized_linear_workspace(T, I)) + " floats in one dimension",
         std::to_string(floats));

  const QuantKernels::Typed& kernels = quant_kernels().of(a.x.dtype);
  const int64_t size = element_size(a.x.dtype);
  const QuantRows rows = rows_in(workspace, T, G);
  const int zero = zero_point(a, B);
  parallel_for(T, kRowsPerDraw, [&](int64_t t) {
    kernels.quantize(a.x.as<const char>() + t * a.x.strides[0] * size, I, rows, t, zero);
  });

  const auto multiply = a.mins ? kernels.multiply4_offset : B == 8 ? kernels.multiply8 : kernels.multiply4;
  const int64_t block_bytes = G * B * 4 * kQuantBlock, chunks = (T + kRowsPerItem - 1) / kRowsPerItem;
  const int64_t fair = (N * chunks + 4 * num_threads() - 1) / (4 * num_threads());
  parallel_for(N * chunks, std::min(std::max<int64_t>(kBytesPerDraw / std::max<int64_t>(block_bytes, 1), 1), fair),
               [&](int64_t item) {
                 const int64_t n = item % N, t = item / N * kRowsPerItem, first = n * kQuantBlock;
                 const int64_t groups = n * G * kQuantBlock;
                 const QuantBlock block = {.quants = a.quants.as<const uint8_t>() + n * block_bytes,
                                           .scales = a.scales.as<const f16>() + groups,
                                           .mins = a.mins ? a.mins->as<const f16>() + groups : nullptr,
                                           .bias = a.bias ? a.bias->as<const float>() + first : nullptr,
                                           .outputs = static_cast<int>(std::min(kQuantBlock, O - first))};
                 char* out = a.out.as<char>() + (t * a.out.strides[0] + first) * size;
                 multiply(rows, t, std::min(kRowsPerItem, T - t), block, out, a.out.strides[0]);
               });
}

}  // namespace atk
