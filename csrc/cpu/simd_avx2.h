// AVX2 with FMA and F16C: 8 floats.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "common/dtype.h"

namespace atk::ATK_ISA {

using Vec = __m256;
constexpr int W = 8;            // floats in a Vec
constexpr int kVecColumns = 2;  // 6 x 2 accumulators, 2 columns and a broadcast: 15 of the 16 registers

inline Vec load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline void store(float* p, Vec x) {
  _mm256_storeu_ps(p, x);
}
inline Vec splat(float x) {
  return _mm256_set1_ps(x);
}
inline Vec add(Vec a, Vec b) {
  return _mm256_add_ps(a, b);
}
inline Vec sub(Vec a, Vec b) {
  return _mm256_sub_ps(a, b);
}
inline Vec mul(Vec a, Vec b) {
  return _mm256_mul_ps(a, b);
}
inline Vec div(Vec a, Vec b) {
  return _mm256_div_ps(a, b);
}
inline Vec max(Vec a, Vec b) {
  return _mm256_max_ps(a, b);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm256_fmadd_ps(a, b, c);
}  // a * b + c

// Lane i is a's where bit i is set, else b's.
inline Vec select(uint64_t bits, Vec a, Vec b) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
}

// Lane by lane x where a < b, else y.
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}

// x * 2^n, where n is the integer in the low bits of `biased`.
inline Vec times_power_of_two(Vec x, Vec biased) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(biased), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}

inline float first_lane(Vec x) {
  return _mm256_cvtss_f32(x);
}
inline float reduce_max(Vec x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

inline float reduce_add(Vec x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

inline Vec load_full(const float* p) {
  return load(p);
}
inline Vec load_full(const bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Vec load_full(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// The first n <= W elements as floats, then zeros; nothing beyond them is read.
template <class T>
inline Vec load_first(const T* p, int n) {
  if (n == W) return load_full(p);
  T padded[W] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load_full(padded);
}

// Rows become columns: 8 x 8 dwords.
inline void transpose(Vec (&r)[W]) {
  Vec t[W];
  for (int i = 0; i < W; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < W; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < W; ++i) r[i] = t[i];
}

// Rows become columns as they are loaded, 16 bytes of each of W rows at a time: load_lanes puts the 16 bytes of row
// 4 L + j into 128-bit lane L of r[.][j], transpose_lanes makes r[.][i] the dword i of the 16 bytes, of all rows.
#define ATK_LANES 1
constexpr int kChunks = 1;  // of 16 bytes: more would take all registers

inline void load_lanes(const char* const* rows, int64_t offset, Vec (&r)[kChunks][4]) {
  const auto at = [&](int row) { return _mm_loadu_ps(reinterpret_cast<const float*>(rows[row] + offset)); };
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) r[0][j] = _mm256_insertf128_ps(_mm256_castps128_ps256(at(j)), at(j + 4), 1);
}

inline void transpose_lanes(Vec (&r)[4]) {
  const Vec a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
  const Vec c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
  r[0] = _mm256_shuffle_ps(a, c, 0x44);
  r[1] = _mm256_shuffle_ps(a, c, 0xee);
  r[2] = _mm256_shuffle_ps(b, d, 0x44);
  r[3] = _mm256_shuffle_ps(b, d, 0xee);
}

// The even and the odd of two bfloat16 in each dword, as floats.
inline void widen_pairs(Vec x, Vec& even, Vec& odd) {
  even = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(-65536)));
}

}  // namespace atk::ATK_ISA
