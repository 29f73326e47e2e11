// Dot products of small integers, in the three instruction sets: a GroupSum<bits> adds up W outputs' products of
// weights (bytes, four inputs an output) with four activations that all outputs share. Every sum is exact.
#pragma once

#include <cstring>

#include "cpu/simd.h"

namespace atk::ATK_ISA {

inline int32_t four_of(const int8_t* x) {
  int32_t word;
  std::memcpy(&word, x, sizeof word);
  return word;
}

#if defined(__AVX512F__)
using Bytes = __m512i;

inline Bytes load_bytes(const uint8_t* p) {
  return _mm512_loadu_si512(p);
}
inline Bytes low_halves(Bytes x) {
  return _mm512_and_si512(x, _mm512_set1_epi8(15));
}
inline Bytes high_halves(Bytes x) {
  return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15));
}
inline Vec floats_of(Bytes x) {
  return _mm512_cvtepi32_ps(x);
}
inline Bytes splat_word(int32_t x) {
  return _mm512_set1_epi32(x);
}

#if defined(__AVX512VNNI__)
// Bytes without a sign times bytes with one, all four added up at once; `term` makes up for the zero point.
template <int bits>
struct GroupSum {
  using Weights = Bytes;
  Bytes sum;
  void begin(int32_t term) { sum = splat_word(term); }
  static Weights prepared(Bytes u) { return u; }
  void add(const Weights& u, int32_t x) { sum = _mm512_dpbusd_epi32(sum, u, splat_word(x)); }
  Bytes total() const { return sum; }
};
#else
inline Bytes add_words(Bytes a, Bytes b) {
  return _mm512_add_epi32(a, b);
}
inline Bytes pairs_of_shorts(Bytes x) {
  return _mm512_madd_epi16(x, _mm512_set1_epi16(1));
}

// Products of bytes are added in pairs to 16 bits: |w| <= 128 times |x| <= 127 twice is 32512 at most. The sign of a
// weight goes to its activation, so the zero point needs no term.
struct SignedWeights {
  Bytes magnitude;
  __mmask64 negative;
};
inline SignedWeights signed_weights(Bytes u) {
  const Bytes w = _mm512_xor_si512(u, _mm512_set1_epi8(-128));
  return {_mm512_abs_epi8(w), _mm512_movepi8_mask(w)};
}
inline Bytes signed_products(const SignedWeights& w, int32_t x) {
  const Bytes given = splat_word(x);
  return _mm512_maddubs_epi16(w.magnitude, _mm512_mask_sub_epi8(given, w.negative, _mm512_setzero_si512(), given));
}
inline Bytes small_products(Bytes u, int32_t x) {
  return _mm512_maddubs_epi16(u, splat_word(x));
}
inline Bytes add_shorts(Bytes a, Bytes b) {
  return _mm512_add_epi16(a, b);
}
#endif

#elif defined(__AVX2__)
using Bytes = __m256i;

inline Bytes load_bytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Bytes low_halves(Bytes x) {
  return _mm256_and_si256(x, _mm256_set1_epi8(15));
}
inline Bytes high_halves(Bytes x) {
  return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15));
}
inline Vec floats_of(Bytes x) {
  return _mm256_cvtepi32_ps(x);
}
inline Bytes splat_word(int32_t x) {
  return _mm256_set1_epi32(x);
}
inline Bytes add_words(Bytes a, Bytes b) {
  return _mm256_add_epi32(a, b);
}
inline Bytes pairs_of_shorts(Bytes x) {
  return _mm256_madd_epi16(x, _mm256_set1_epi16(1));
}

// Products of bytes are added in pairs to 16 bits: |w| <= 128 times |x| <= 127 twice is 32512 at most. The sign of a
// weight goes to its activation, so the zero point needs no term.
struct SignedWeights {
  Bytes magnitude, sign;
};
inline SignedWeights signed_weights(Bytes u) {
  const Bytes w = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
  return {_mm256_abs_epi8(w), w};
}
inline Bytes signed_products(const SignedWeights& w, int32_t x) {
  return _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(splat_word(x), w.sign));
}
inline Bytes small_products(Bytes u, int32_t x) {
  return _mm256_maddubs_epi16(u, splat_word(x));
}
inline Bytes add_shorts(Bytes a, Bytes b) {
  return _mm256_add_epi16(a, b);
}

#else
// Four outputs, in plain code.
struct Bytes {
  uint8_t byte[16];
};
using Words = Bits;

inline Bytes load_bytes(const uint8_t* p) {
  Bytes x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Bytes low_halves(Bytes x) {
  for (uint8_t& byte : x.byte) byte &= 15;
  return x;
}
inline Bytes high_halves(Bytes x) {
  for (uint8_t& byte : x.byte) byte >>= 4;
  return x;
}
inline Vec floats_of(Words x) {
  return __builtin_convertvector(x, Vec);
}

template <int bits>
struct GroupSum {
  using Weights = Bytes;
  Words sum;
  void begin(int32_t term) { sum = Words{term, term, term, term}; }
  static Weights prepared(Bytes u) { return u; }
  void add(const Weights& u, int32_t x) {
    int8_t four[4];
    std::memcpy(four, &x, sizeof four);
    for (int i = 0; i < 4; ++i) sum += four[i] * Words{u.byte[i], u.byte[4 + i], u.byte[8 + i], u.byte[12 + i]};
  }
  Words total() const { return sum; }
};
#endif

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
template <int bits>
struct GroupSum {
  using Weights = SignedWeights;
  Bytes sum;
  void begin(int32_t) { sum = splat_word(0); }
  static Weights prepared(Bytes u) { return signed_weights(u); }
  void add(const Weights& w, int32_t x) { sum = add_words(sum, pairs_of_shorts(signed_products(w, x))); }
  Bytes total() const { return sum; }
};

// Weights up to 15: the sum of a group's eight pairs is 30480 at most, so it stays in 16 bits until the end.
template <>
struct GroupSum<4> {
  using Weights = Bytes;
  Bytes sum;
  int32_t term;
  void begin(int32_t given) { sum = splat_word(0), term = given; }
  static Weights prepared(Bytes u) { return u; }
  void add(const Weights& u, int32_t x) { sum = add_shorts(sum, small_products(u, x)); }
  Bytes total() const { return add_words(splat_word(term), pairs_of_shorts(sum)); }
};
#endif

}  // namespace atk::ATK_ISA
