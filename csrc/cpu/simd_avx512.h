// AVX-512: 16 floats, lane masks in mask registers; with AVX512-BF16 also the dot product of bfloat16 pairs.
#pragma once

// GCC 12's header initialises "undefined" operands with themselves and then warns of it (GCC PR 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

#include "common/dtype.h"

namespace atk::ATK_ISA {

using Vec = __m512;
constexpr int W = 16;           // floats in a Vec
constexpr int kVecColumns = 4;  // 6 x 4 accumulators, 4 columns and a broadcast: 29 of the 32 registers

inline Vec load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline void store(float* p, Vec x) {
  _mm512_storeu_ps(p, x);
}
inline Vec splat(float x) {
  return _mm512_set1_ps(x);
}
inline Vec add(Vec a, Vec b) {
  return _mm512_add_ps(a, b);
}
inline Vec sub(Vec a, Vec b) {
  return _mm512_sub_ps(a, b);
}
inline Vec mul(Vec a, Vec b) {
  return _mm512_mul_ps(a, b);
}
inline Vec div(Vec a, Vec b) {
  return _mm512_div_ps(a, b);
}
inline Vec max(Vec a, Vec b) {
  return _mm512_max_ps(a, b);
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return _mm512_fmadd_ps(a, b, c);
}  // a * b + c

// Lane i is a's where bit i is set, else b's.
inline Vec select(uint64_t bits, Vec a, Vec b) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), b, a);
}

// Lane by lane x where a < b, else y.
inline Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

// x * 2^n, where n is the integer in the low bits of `biased`.
inline Vec times_power_of_two(Vec x, Vec biased) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(biased), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent));
}

inline float first_lane(Vec x) {
  return _mm512_cvtss_f32(x);
}
inline float reduce_max(Vec x) {
  return _mm512_reduce_max_ps(x);
}
inline float reduce_add(Vec x) {
  return _mm512_reduce_add_ps(x);
}

// The first n <= W elements as floats, then zeros; nothing beyond them is read.
inline Vec load_first(const float* p, int n) {
  return _mm512_maskz_loadu_ps((1u << n) - 1u, p);
}
inline Vec load_first(const bf16* p, int n) {
  const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1u), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vec load_first(const f16* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1u), p));
}

// Rows become columns: 16 x 16 dwords, in four rounds of unpacks and 128-bit shuffles.
inline void transpose(Vec (&r)[W]) {
  Vec t[W];
#pragma GCC unroll 8
  for (int i = 0; i < W; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < W; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Rows become columns as they are loaded, 16 bytes of each of W rows at a time: load_lanes puts the 16 bytes of row
// 4 L + j into 128-bit lane L of r[.][j], transpose_lanes makes r[.][i] the dword i of the 16 bytes, of all rows. Loads
// and inserts do what 512-bit loads would need a second half of shuffles for.
#define ATK_LANES 1
constexpr int kChunks = 4;  // of 16 bytes: all of a cache line, which may be gone from the first-level cache thereafter

inline void load_lanes(const char* const* rows, int64_t offset, Vec (&r)[kChunks][4]) {
  const auto at = [&](int row, int chunk) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(rows[row] + offset + 16 * chunk));
  };
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j)
#pragma GCC unroll 4
    for (int c = 0; c < kChunks; ++c) {
      Vec x = _mm512_castps128_ps512(at(j, c));
      x = _mm512_insertf32x4(x, at(j + 4, c), 1);
      x = _mm512_insertf32x4(x, at(j + 8, c), 2);
      r[c][j] = _mm512_insertf32x4(x, at(j + 12, c), 3);
    }
}

inline void transpose_lanes(Vec (&r)[4]) {
  const Vec a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
  const Vec c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
  r[0] = _mm512_shuffle_ps(a, c, 0x44);
  r[1] = _mm512_shuffle_ps(a, c, 0xee);
  r[2] = _mm512_shuffle_ps(b, d, 0x44);
  r[3] = _mm512_shuffle_ps(b, d, 0xee);
}

// The even and the odd of two bfloat16 in each dword, as floats.
inline void widen_pairs(Vec x, Vec& even, Vec& odd) {
  even = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(-65536)));
}

#if defined(__AVX512BF16__)
#define ATK_BF16_DOT 1

// A Vec of dwords that each hold two bfloat16.
inline Vec dot_pairs(Vec acc, Vec a, Vec b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

inline Vec load_pairs_first(const bf16* p, int n) {
  const __mmask32 mask = n >= 2 * W ? ~0u : (1u << n) - 1u;
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p));
}

// Rounds 2W floats to W dwords.
inline void store_pairs(float* p, Vec first, Vec second) {
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
}

// Pairs (a_i, b_i) of two runs of 2W bfloat16.
inline void zip_pairs(Vec a, Vec b, Vec& first, Vec& second) {
  alignas(64) static constexpr uint16_t kFirst[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i lower = _mm512_load_si512(kFirst);
  const __m512i upper = _mm512_add_epi16(lower, _mm512_set1_epi16(16));
  first = _mm512_castsi512_ps(_mm512_permutex2var_epi16(_mm512_castps_si512(a), lower, _mm512_castps_si512(b)));
  second = _mm512_castsi512_ps(_mm512_permutex2var_epi16(_mm512_castps_si512(a), upper, _mm512_castps_si512(b)));
}
#endif

}  // namespace atk::ATK_ISA
