// Compiled once per instruction set. Products and sums of floats stay separate operations in each (no fused ones).
#include <bit>

#include "cpu/quantized_rows.h"
#include "cpu/simd_quant.h"

namespace atk::ATK_ISA {
namespace {

constexpr int kGroup = kQuantGroup, kBlock = kQuantBlock, kTile = QuantRows::kTile;
constexpr int kRows = W == 16 ? 8 : 4;  // rows that share a loaded weight: as many as the registers hold
constexpr int64_t kAhead = 1024;        // of weights, times their bits: bytes that are asked for before they are read
constexpr float kSmallest = 1e-30f;     // a group whose largest number is smaller counts as zeros

template <class T>
void quantize(const void* row, int64_t I, const QuantRows& to, int64_t t, int zero) {
  const T* x = static_cast<const T*>(row);
  const int64_t G = to.G;
  for (int64_t g = 0; g < G; ++g) {
    const int64_t n = I - g * kGroup < kGroup ? I - g * kGroup : kGroup;
    float values[kGroup] = {};
    if (n == kGroup) {
      for (int i = 0; i < kGroup; ++i) values[i] = to_float(x[g * kGroup + i]);
    } else {
      for (int64_t i = 0; i < n; ++i) values[i] = to_float(x[g * kGroup + i]);
    }
    uint32_t bits = 0;  // of the largest magnitude; those of NaN are above infinity's
    for (int i = 0; i < kGroup; ++i) {
      const uint32_t mine = std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu;
      bits = mine > bits ? mine : bits;
    }
    const bool finite = bits < 0x7f800000u;
    const float largest = std::bit_cast<float>(bits);
    const bool counts = finite && largest >= kSmallest;
    const float inverse = counts ? 127.0f / largest : 0.0f;
    const float scale = !finite ? std::bit_cast<float>(0x7fc00000u) : counts ? largest / 127.0f : 0.0f;
    int8_t* integers = to.integers + to.at(t, g) * kGroup;
    int32_t sum = 0;
    for (int i = 0; i < kGroup; ++i) {  // adding 1.5 * 2^23 rounds to an integer, and leaves it in the low bits
      const int8_t integer = static_cast<int8_t>(std::bit_cast<int32_t>(values[i] * inverse + 12582912.0f));
      integers[i] = integer;
      sum += integer;
    }
    to.scales[to.at(t, g)] = scale;
    to.terms[to.at(t, g)] = zero >= 0 ? -zero * sum : std::bit_cast<int32_t>(scale * static_cast<float>(sum));
  }
}

// acc[r][0:W] of R rows: sum over groups of (scale of the weights * scale of the row) * sum of products, then offsets.
template <int bits, bool offset, int R>
void multiply_rows(const QuantRows& x, int64_t t, const QuantBlock& block, int first, float (*to)[kBlock]) {
  constexpr int kLoads = bits;  // of 64 bytes, for a group
  const int64_t G = x.G;
  const int8_t* integers = x.integers + x.at(t, 0) * kGroup;
  const float* scales = x.scales + x.at(t, 0);
  const int32_t* terms = x.terms + x.at(t, 0);
  Vec acc[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r] = splat(0.0f);
  for (int64_t g = 0; g < G; ++g, integers += kTile * kGroup, scales += kTile, terms += kTile) {
    using Sum = GroupSum<bits>;
    Sum sum[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[r].begin(offset ? 0 : terms[r]);
    const uint8_t* quants = block.quants + g * kLoads * 4 * kBlock + 4 * first;
#pragma GCC unroll 8
    for (int load = 0; load < kLoads; ++load) {
      if (first == 0) __builtin_prefetch(quants + load * 4 * kBlock + kAhead * bits);
      const Bytes bytes = load_bytes(quants + load * 4 * kBlock);
      if constexpr (bits == 8) {
        const typename Sum::Weights weights = Sum::prepared(bytes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r].add(weights, four_of(integers + r * kGroup + 4 * load));
      } else {
        const typename Sum::Weights low = Sum::prepared(low_halves(bytes)), high = Sum::prepared(high_halves(bytes));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          sum[r].add(low, four_of(integers + r * kGroup + 8 * load));
          sum[r].add(high, four_of(integers + r * kGroup + 8 * load + 4));
        }
      }
    }
    const Vec scale = load_first(block.scales + g * kBlock + first, W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      acc[r] = atk::ATK_ISA::add(acc[r], mul(floats_of(sum[r].total()), mul(scale, splat(scales[r]))));
    if constexpr (offset) {
      const Vec least = load_first(block.mins + g * kBlock + first, W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r] = atk::ATK_ISA::add(acc[r], mul(least, splat(std::bit_cast<float>(terms[r]))));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) store(to[r] + first, acc[r]);
}

template <class T, int bits, bool offset, int R>
void multiply_tile(const QuantRows& x, int64_t t, const QuantBlock& block, void* out, int64_t out_stride) {
  float acc[R][kBlock];
  for (int first = 0; first < kBlock; first += W) multiply_rows<bits, offset, R>(x, t, block, first, acc);
  for (int r = 0; r < R; ++r) {
    if (block.bias)
      for (int o = 0; o < block.outputs; ++o) acc[r][o] += block.bias[o];
    T* y = static_cast<T*>(out) + r * out_stride;
    if (block.outputs == kBlock) {
      for (int o = 0; o < kBlock; ++o) y[o] = from_float<T>(acc[r][o]);
    } else {
      for (int o = 0; o < block.outputs; ++o) y[o] = from_float<T>(acc[r][o]);
    }
  }
}

template <class T, int bits, bool offset>
void multiply(const QuantRows& x, int64_t t, int64_t rows, const QuantBlock& block, void* out, int64_t out_stride) {
  T* y = static_cast<T*>(out);
  const int64_t end = t + rows;
  // Tiles begin at multiples of their size, so each lies within one tile of the layout.
  const auto advance = [&](int count) { t += count, y += count * out_stride; };
  for (; end - t >= kRows; advance(kRows)) multiply_tile<T, bits, offset, kRows>(x, t, block, y, out_stride);
  if constexpr (kRows > 4)
    for (; end - t >= 4; advance(4)) multiply_tile<T, bits, offset, 4>(x, t, block, y, out_stride);
  for (; end - t >= 2; advance(2)) multiply_tile<T, bits, offset, 2>(x, t, block, y, out_stride);
  if (end - t == 1) multiply_tile<T, bits, offset, 1>(x, t, block, y, out_stride);
}

template <class T>
constexpr QuantKernels::Typed kTyped = {quantize<T>, multiply<T, 8, false>, multiply<T, 4, false>,
                                        multiply<T, 4, true>};

}  // namespace

extern const QuantKernels quant_kernels = {kTyped<float>, kTyped<bf16>, kTyped<f16>};

}  // namespace atk::ATK_ISA
