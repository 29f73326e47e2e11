#include <algorithm>

#include "cpu/ops.h"
#include "cpu/quantized_rows.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kRowsPerItem = 64;           // with I inputs each, they stay in the second cache
constexpr int64_t kRowsPerDraw = 16;           // of activations made to integers
constexpr int64_t kBytesPerDraw = 128 << 10;   // of weights: long enough runs for the processor's prefetching
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

void quantized_linears(const QuantizedLinear* layers, int64_t count, const View& workspace) {
  int64_t blocks = 0, largest = 1, T = 0, I = 0, G = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Sizes sizes = layers[i].check();
    T = sizes["T"], I = sizes["I"], G = sizes["G"], blocks += sizes["N"];
    largest = std::max(largest, G * sizes["B"] * 4 * kQuantBlock);
    if (layers[i].x.data != layers[0].x.data) fail("x", "one input of all layers", "others");
    if (zero_point(layers[i], sizes["B"]) != zero_point(layers[0], layers[0].quants.shape[2]))
      fail("quants", "one format of all layers", "others");
  }
  if (!count) return;
  check_dtype("workspace", workspace, DType::f32);
  check_contiguous("workspace", workspace);
  const int64_t floats = workspace.ndim == 1 ? workspace.shape[0] : 0;
  if (floats < quantized_linear_workspace(T, I))
    fail("workspace", std::to_string(quantized_linear_workspace(T, I)) + " floats in one dimension",
         std::to_string(floats));

  const View& x = layers[0].x;
  const QuantKernels::Typed& kernels = quant_kernels().of(x.dtype);
  const int64_t size = element_size(x.dtype);
  const QuantRows rows = rows_in(workspace, T, G);
  const int zero = zero_point(layers[0], layers[0].quants.shape[2]);
  parallel_for(T, kRowsPerDraw,
               [&](int64_t t) { kernels.quantize(x.as<const char>() + t * x.strides[0] * size, I, rows, t, zero); });

  const int64_t chunks = (T + kRowsPerItem - 1) / kRowsPerItem;
  const int64_t fair = (blocks * chunks + 4 * num_threads() - 1) / (4 * num_threads());
  parallel_for(blocks * chunks, std::min(std::max<int64_t>(kBytesPerDraw / largest, 1), fair), [&](int64_t item) {
    const QuantizedLinear* a = layers;
    int64_t n = item % blocks;
    for (; n >= a->quants.shape[0]; ++a) n -= a->quants.shape[0];
    const int64_t t = item / blocks * kRowsPerItem, first = n * kQuantBlock, B = a->quants.shape[2];
    const int64_t groups = n * G * kQuantBlock;
    const QuantBlock block = {.quants = a->quants.as<const uint8_t>() + n * G * B * 4 * kQuantBlock,
                              .scales = a->scales.as<const f16>() + groups,
                              .mins = a->mins ? a->mins->as<const f16>() + groups : nullptr,
                              .bias = a->bias ? a->bias->as<const float>() + first : nullptr,
                              .outputs = static_cast<int>(std::min(kQuantBlock, a->out.shape[1] - first))};
    const auto multiply = a->mins ? kernels.multiply4_offset : B == 8 ? kernels.multiply8 : kernels.multiply4;
    char* out = a->out.as<char>() + (t * a->out.strides[0] + first) * size;
    multiply(rows, t, std::min(kRowsPerItem, T - t), block, out, a->out.strides[0]);
  });
}

}  // namespace atk
