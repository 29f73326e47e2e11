// Compiled once per instruction set.
#include <cstring>

#include "common/dtype.h"
#include "cpu/packed_rows.h"
#include "cpu/simd.h"

namespace atk::ATK_ISA {
namespace {

constexpr int kBlock = kPackedBlock;
constexpr int kColumns = 2;             // Vecs of outputs side by side
constexpr int kRows = W == 16 ? 8 : 4;  // rows that share a loaded weight: as many as the registers hold
constexpr int64_t kAhead = 8192;        // bytes of weights that are asked for before they are read

// One input of float32, or a pair of bfloat16, of W outputs, and how it is multiplied and added.
template <class T>
struct Weights;

template <>
struct Weights<float> {
  static constexpr int kInputs = 1;
  Vec value;
  static Weights of(const float* p) { return {load(p)}; }
  struct Input {
    Vec value;
    static Input of(const float* x) { return {splat(*x)}; }
  };
  Vec add_to(Vec sum, const Input& x) const { return fma(value, x.value, sum); }
};

#if ATK_BF16_DOT
template <>
struct Weights<bf16> {
  static constexpr int kInputs = 2;
  Vec pairs;
  static Weights of(const bf16* p) { return {load(reinterpret_cast<const float*>(p))}; }
  struct Input {
    Vec pairs;
    static Input of(const bf16* x) {
      float pair;
      std::memcpy(&pair, x, sizeof pair);
      return {splat(pair)};
    }
  };
  Vec add_to(Vec sum, const Input& x) const { return dot_pairs(sum, pairs, x.pairs); }
};
#else
template <>
struct Weights<bf16> {
  static constexpr int kInputs = 2;
  using Words = uint32_t __attribute__((vector_size(sizeof(Vec))));
  Vec first, second;
  static Weights of(const bf16* p) {
    Words words;
    std::memcpy(&words, p, sizeof words);
    return {reinterpret_cast<Vec>(words << 16), reinterpret_cast<Vec>(words & 0xffff0000u)};
  }
  struct Input {
    Vec first, second;
    static Input of(const bf16* x) { return {splat(to_float(x[0])), splat(to_float(x[1]))}; }
  };
  Vec add_to(Vec sum, const Input& x) const { return fma(second, x.second, fma(first, x.first, sum)); }
};
#endif

// sums[r][first : first + 2W] of R rows.
template <class T, int R>
void multiply_columns(const T* x, int64_t x_stride, const PackedBlock& block, int first, float (*sums)[kBlock]) {
  using Weight = Weights<T>;
  constexpr int kInputs = Weight::kInputs;
  Vec acc[R][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < kColumns; ++c) acc[r][c] = splat(0.0f);
  const T* weights = static_cast<const T*>(block.weights) + first * kInputs;
  for (int64_t i = 0; i < block.I; i += kInputs, weights += kBlock * kInputs) {
    __builtin_prefetch(reinterpret_cast<const char*>(weights) + kAhead);
    __builtin_prefetch(reinterpret_cast<const char*>(weights) + kAhead + 64);
    Weight weight[kColumns];
#pragma GCC unroll 2
    for (int c = 0; c < kColumns; ++c) weight[c] = Weight::of(weights + c * W * kInputs);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename Weight::Input input = Weight::Input::of(x + r * x_stride + i);
#pragma GCC unroll 2
      for (int c = 0; c < kColumns; ++c) acc[r][c] = weight[c].add_to(acc[r][c], input);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < kColumns; ++c) store(sums[r] + first + c * W, acc[r][c]);
}

template <class T, int R>
void multiply_tile(const T* x, int64_t x_stride, const PackedBlock& block, T* out, int64_t out_stride) {
  float sums[R][kBlock];
  for (int first = 0; first < kBlock; first += kColumns * W) multiply_columns<T, R>(x, x_stride, block, first, sums);
  const T* bias = static_cast<const T*>(block.bias);
  for (int r = 0; r < R; ++r) {
    if (bias)
      for (int o = 0; o < block.outputs; ++o) sums[r][o] += to_float(bias[o]);
    T* y = out + r * out_stride;
    if (block.outputs == kBlock) {
      for (int o = 0; o < kBlock; ++o) y[o] = from_float<T>(sums[r][o]);
    } else {
      for (int o = 0; o < block.outputs; ++o) y[o] = from_float<T>(sums[r][o]);
    }
  }
}

template <class T>
void multiply(const void* rows, int64_t x_stride, int64_t count, const PackedBlock& block, void* to,
              int64_t out_stride) {
  const T* x = static_cast<const T*>(rows);
  T* out = static_cast<T*>(to);
  const auto advance = [&](int by) { x += by * x_stride, out += by * out_stride, count -= by; };
  for (; count >= kRows; advance(kRows)) multiply_tile<T, kRows>(x, x_stride, block, out, out_stride);
  if constexpr (kRows > 4)
    for (; count >= 4; advance(4)) multiply_tile<T, 4>(x, x_stride, block, out, out_stride);
  for (; count >= 2; advance(2)) multiply_tile<T, 2>(x, x_stride, block, out, out_stride);
  if (count) multiply_tile<T, 1>(x, x_stride, block, out, out_stride);
}

}  // namespace

extern const PackedKernels packed_kernels = {multiply<float>, multiply<bf16>};

}  // namespace atk::ATK_ISA
