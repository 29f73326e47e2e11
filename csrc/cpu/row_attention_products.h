// Matrix products of row attention, and the orders of K and V that they read; included once per instruction set.
#pragma once

#include <bit>

#include "cpu/row_attention.h"
#include "cpu/simd.h"

namespace atk::ATK_ISA {
namespace {

constexpr int kRows = W == 16 ? 8 : 4;  // of a tile: with two Vecs each, as many as the registers hold
static_assert(kRows <= kTileRows && kPadding % (2 * W) == 0);

// Element (i, k) of a factor whose elements are read one by one.
struct Factor {
  const float* data;
  int64_t row, column;  // strides
};

// How elements are multiplied and added: floats, or dwords of two bfloat16 each, where K counts the dwords.
struct Floats {
  static constexpr bool kPairs = false;
  static Vec add_product(Vec sum, Vec a, Vec b) { return fma(a, b, sum); }
};

#if ATK_BF16_DOT
struct Pairs {
  static constexpr bool kPairs = true;
  static Vec add_product(Vec sum, Vec a, Vec b) { return dot_pairs(sum, a, b); }
};
#endif

// Numbers in an element of Math.
template <class Math>
constexpr int64_t kInputs = Math::kPairs ? 2 : 1;

// C [R, C * W] = (add ? C : 0) + A [R, K] B [K, C * W].
template <class Math, int R, int C>
inline void multiply_block(const Factor& a, int64_t K, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                           bool add_to) {
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) acc[r][j] = add_to ? load(c + r * c_stride + j * W) : splat(0.0f);
  const float* left = a.data;
  for (int64_t k = 0; k < K; ++k, left += a.column, b += b_stride) {
    Vec right[C];
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) right[j] = load(b + j * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec x = splat(left[r * a.row]);
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) acc[r][j] = Math::add_product(acc[r][j], x, right[j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) store(c + r * c_stride + j * W, acc[r][j]);
}

// C [R, n] = (add ? C : 0) + A [R, K] B [K, n]; n is a multiple of W.
template <class Math, int R>
inline void multiply_rows(const Factor& a, int64_t K, const Matrix& b, int64_t n, const MutableMatrix& c, bool add_to) {
  int64_t j = 0;
  for (; j + 2 * W <= n; j += 2 * W)
    multiply_block<Math, R, 2>(a, K, b.data + j, b.stride, c.data + j, c.stride, add_to);
  if (j < n) multiply_block<Math, R, 1>(a, K, b.data + j, b.stride, c.data + j, c.stride, add_to);
}

// C [m, n] += A [m, K] B [K, n].
template <class Math>
inline void add_product(Factor a, int64_t m, int64_t K, const Matrix& b, int64_t n, MutableMatrix c) {
  const auto advance = [&](int64_t by) { a.data += by * a.row, c.data += by * c.stride, m -= by; };
  for (; m >= kRows; advance(kRows)) multiply_rows<Math, kRows>(a, K, b, n, c, true);
  for (; m > 0; advance(1)) multiply_rows<Math, 1>(a, K, b, n, c, true);
}

void transpose_all(const Matrix& from, int64_t T, int64_t D, float* to, int64_t stride) {
  int64_t t = 0;
  for (; t + W <= T; t += W)
    for (int64_t d = 0; d < D; d += W) {
      Vec block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) block[i] = load(from.data + (t + i) * from.stride + d);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(to + (d + i) * stride + t, block[i]);
    }
  for (; t < stride; ++t)
    for (int64_t d = 0; d < D; ++d) to[d * stride + t] = t < T ? from.data[t * from.stride + d] : 0.0f;
}

#if ATK_BF16_DOT
uint32_t pair_of(float low, float high) {
  return from_float<bf16>(low).bits | static_cast<uint32_t>(from_float<bf16>(high).bits) << 16;
}

// Pairs of successive inputs, transposed: to [D / 2, T]; behind T zeros.
void transpose_pairs(const Matrix& from, int64_t T, int64_t D, float* to, int64_t stride) {
  const auto one = [&](int64_t t, int64_t d) {
    const float* x = from.data + t * from.stride + d;
    return std::bit_cast<float>(t < T ? pair_of(x[0], x[1]) : 0u);
  };
  int64_t t = 0;
  for (; t + W <= T; t += W) {
    int64_t d = 0;
    for (; d + 2 * W <= D; d += 2 * W) {
      Vec block[W];
      for (int i = 0; i < W; ++i) {
        const float* x = from.data + (t + i) * from.stride + d;
        store_pairs(reinterpret_cast<float*>(&block[i]), load(x), load(x + W));
      }
      transpose(block);
      for (int i = 0; i < W; ++i) store(to + (d / 2 + i) * stride + t, block[i]);
    }
    for (; d < D; d += 2)
      for (int i = 0; i < W; ++i) to[d / 2 * stride + t + i] = one(t + i, d);
  }
  for (; t < stride; ++t)
    for (int64_t d = 0; d < D; d += 2) to[d / 2 * stride + t] = one(t, d);
}

// Pairs of successive tokens: to [T, D]; the last one's second is 0.
void pair_tokens(const Matrix& from, int64_t T, int64_t D, float* to) {
  for (int64_t t = 0; t < T; ++t) {
    const float *x = from.data + t * from.stride, *next = x + (t + 1 < T ? from.stride : 0);
    for (int64_t d = 0; d < D; ++d) to[t * D + d] = std::bit_cast<float>(pair_of(x[d], t + 1 < T ? next[d] : 0.0f));
  }
}
#endif

}  // namespace

}  // namespace atk::ATK_ISA
