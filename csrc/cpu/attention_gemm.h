// The inner product of everything: C [M, N] = A [M, K] * B [K, N] on packed operands, a block of MR x NR vectors at a
// time. An element of A, and one lane of B, is a "dword": one float, or a pair of bfloat16 that are consecutive in the
// summed dimension. Each element of C is one chain of fused multiply-adds in the order of K, whatever the block's
// shape.
#pragma once

#include "cpu/simd.h"

namespace atk::ATK_ISA {

constexpr int kMaxRows = 6;  // rows of a block

struct FloatMath {
  static constexpr int kElements = 1;  // of a dword
  static Vec multiply_add(Vec a, Vec b, Vec acc) { return fma(a, b, acc); }
};

#if defined(ATK_BF16_DOT)
struct PairMath {
  static constexpr int kElements = 2;
  static Vec multiply_add(Vec a, Vec b, Vec acc) { return dot_pairs(acc, a, b); }
  static void store(float* dwords, Vec first, Vec second) { store_pairs(dwords, first, second); }
};
#endif

// Copied as bits: the dword may have been written as a pair.
inline Vec splat_dword(const float* p) {
  float dword;
  __builtin_memcpy(&dword, p, sizeof dword);
  return splat(dword);
}

// The K and V rows of the next tile, brought near while this one is computed: a line of each for every `pace` vector
// operations, so that memory is neither idle nor asked for more than it can have under way.
struct Ahead {
  const char* const* k = nullptr;
  const char* const* v = nullptr;
  int64_t rows = 0, lines = 0;  // cache lines of a row
  int64_t pace = 0, credit = 0, line = 0;

  inline __attribute__((always_inline)) void step(int64_t operations) {
    credit += operations;
    for (; credit >= pace && rows > 0; credit -= pace) {
      __builtin_prefetch(*k + 64 * line, 0, 2);
      __builtin_prefetch(*v + 64 * line, 0, 2);
      if (++line < lines) continue;
      line = 0, ++k, ++v, --rows;
    }
  }
};

struct GemmOperands {
  const float* a;  // dwords [MR, k], rows `a_stride` apart
  const float* b;  // dwords [k, N], rows `b_stride` apart
  float* c;        // [MR, N], rows `c_stride` apart
  int64_t a_stride, b_stride, c_stride;
  int64_t k;
  const float* c_scale;  // [MR]: C = c_scale * C + A * B; null: C = A * B
  Ahead* ahead;
};

template <class Math, int MR, int NR>
inline void gemm_block(const GemmOperands& x, int64_t column) {
  Ahead ahead = *x.ahead;
  Vec acc[MR][NR];
  float* const c = x.c + column;
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i) {
    const Vec scale = splat(x.c_scale ? x.c_scale[i] : 0.0f);
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) acc[i][j] = x.c_scale ? mul(scale, load(c + i * x.c_stride + j * W)) : scale;
  }
  const float* b = x.b + column;
  const auto add_products = [&](int64_t k) __attribute__((always_inline)) {
    Vec columns[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) columns[j] = load(b + j * W);
#pragma GCC unroll 6
    for (int i = 0; i < MR; ++i) {
      const Vec a = splat_dword(x.a + i * x.a_stride + k);
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) acc[i][j] = Math::multiply_add(a, columns[j], acc[i][j]);
    }
    b += x.b_stride;
  };
  int64_t k = 0;
  for (; k + 2 <= x.k; k += 2) {  // two at a time: what the loop itself takes is no small part of a narrow block
    ahead.step(2 * MR * NR);
    add_products(k);
    add_products(k + 1);
  }
  if (k < x.k) add_products(k);
#pragma GCC unroll 6
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) store(c + i * x.c_stride + j * W, acc[i][j]);
  *x.ahead = ahead;
}

// `columns` is a multiple of W.
template <class Math, int MR>
inline void gemm_rows(const GemmOperands& x, int64_t columns) {
  int64_t column = 0;
  for (; column + kVecColumns * W <= columns; column += kVecColumns * W) gemm_block<Math, MR, kVecColumns>(x, column);
  if (kVecColumns > 2 && column + 2 * W <= columns) gemm_block<Math, MR, 2>(x, column), column += 2 * W;
  for (; column < columns; column += W) gemm_block<Math, MR, 1>(x, column);
}

template <class Math>
inline void gemm(int rows, const GemmOperands& x, int64_t columns) {
  switch (rows) {
    case 1:
      return gemm_rows<Math, 1>(x, columns);
    case 2:
      return gemm_rows<Math, 2>(x, columns);
    case 3:
      return gemm_rows<Math, 3>(x, columns);
    case 4:
      return gemm_rows<Math, 4>(x, columns);
    case 5:
      return gemm_rows<Math, 5>(x, columns);
    default:
      return gemm_rows<Math, kMaxRows>(x, columns);
  }
}

}  // namespace atk::ATK_ISA
