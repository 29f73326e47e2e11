#include <algorithm>

#include "cpu/ops.h"
#include "cpu/packed_rows.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kRowsPerItem = 64;          // with I inputs each, they stay in the second cache
constexpr int64_t kDrawsPerThread = 4;        // at least, so that threads end together
constexpr int64_t kBytesPerDraw = 128 << 10;  // of weights: long enough runs for the processor's prefetching

}  // namespace

void packed_linears(const PackedLinear* layers, int64_t count) {
  int64_t blocks = 0, T = 0, I = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Sizes sizes = layers[i].check();
    T = sizes["T"], I = sizes["I"], blocks += layers[i].packed.shape[0];
    if (layers[i].x.data != layers[0].x.data) fail("x", "one input of all layers", "others");
  }
  if (!count) return;
  const View& x = layers[0].x;
  const int64_t size = element_size(x.dtype), block_bytes = kPackedBlock * I * size;
  const PackedKernels::Multiply multiply = packed_kernels().of(x.dtype);
  const int64_t chunks = (T + kRowsPerItem - 1) / kRowsPerItem;
  const int64_t fair = (blocks * chunks + kDrawsPerThread * num_threads() - 1) / (kDrawsPerThread * num_threads());
  const int64_t draw = std::min(std::max<int64_t>(kBytesPerDraw / std::max<int64_t>(block_bytes, 1), 1), fair);
  parallel_for(blocks * chunks, draw, [&](int64_t item) {
    const PackedLinear* layer = layers;
    int64_t n = item % blocks;
    for (; n >= layer->packed.shape[0]; ++layer) n -= layer->packed.shape[0];
    const int64_t t = item / blocks * kRowsPerItem, first = n * kPackedBlock;
    const PackedBlock block = {.weights = layer->packed.as<const char>() + n * block_bytes,
                               .bias = layer->bias ? layer->bias->as<const char>() + first * size : nullptr,
                               .I = I,
                               .outputs = static_cast<int>(std::min(kPackedBlock, layer->out.shape[1] - first))};
    multiply(x.as<const char>() + t * x.strides[0] * size, x.strides[0], std::min(kRowsPerItem, T - t), block,
             layer->out.as<char>() + (t * layer->out.strides[0] + first) * size, layer->out.strides[0]);
  });
}

}  // namespace atk
