// Any machine: 4 floats as a compiler vector, which is SSE2 on x86-64, NEON on Arm, and plain code elsewhere.
#pragma once

#include <cstring>

#include "common/dtype.h"

namespace atk::ATK_ISA {

using Vec = float __attribute__((vector_size(16)));
using Bits = int32_t __attribute__((vector_size(16)));
constexpr int W = 4;            // floats in a Vec
constexpr int kVecColumns = 2;  // 6 x 2 accumulators fit 16 registers

inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Vec x) {
  std::memcpy(p, &x, sizeof x);
}
inline Vec splat(float x) {
  return Vec{x, x, x, x};
}
inline Vec add(Vec a, Vec b) {
  return a + b;
}
inline Vec sub(Vec a, Vec b) {
  return a - b;
}
inline Vec mul(Vec a, Vec b) {
  return a * b;
}
inline Vec div(Vec a, Vec b) {
  return a / b;
}
inline Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return a * b + c;
}  // here with two roundings

// Lane i is a's where bit i is set, else b's.
inline Vec select(uint64_t bits, Vec a, Vec b) {
  const int32_t low = static_cast<int32_t>(bits & 15);
  return (Bits{low, low, low, low} & Bits{1, 2, 4, 8}) != 0 ? a : b;
}

// Lane by lane x where a < b, else y.
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return a < b ? x : y;
}

// x * 2^n, where n is the integer in the low bits of `biased`.
inline Vec times_power_of_two(Vec x, Vec biased) {
  return reinterpret_cast<Vec>(reinterpret_cast<Bits>(x) + (reinterpret_cast<Bits>(biased) << 23));
}

inline float first_lane(Vec x) {
  return x[0];
}
inline float reduce_max(Vec x) {
  const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}
inline float reduce_add(Vec x) {
  return (x[0] + x[2]) + (x[1] + x[3]);
}

// The first n <= W elements as floats, then zeros; nothing beyond them is read.
template <class T>
inline Vec load_first(const T* p, int n) {
  Vec x = {};
  for (int i = 0; i < n; ++i) x[i] = to_float(p[i]);
  return x;
}

// Rows become columns: 4 x 4 dwords.
inline void transpose(Vec (&r)[W]) {
  const Vec a = r[0], b = r[1], c = r[2], d = r[3];
  for (int i = 0; i < W; ++i) r[i] = Vec{a[i], b[i], c[i], d[i]};
}

}  // namespace atk::ATK_ISA
