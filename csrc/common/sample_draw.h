// One token of a row of logits, in integers: every device, thread count and vector width draws the same.
//
// Token v has the weight trunc(2^40 exp((x_v - max) / temperature)), an integer whose float operations are each rounded
// on their own (IEEE), here and on a GPU. Sums of integers are exact in any order, and all that is decided (where top-k
// and top-p end, which token a random number falls on) is decided by comparing such sums. Less than 2^23 tokens: their
// sum fits a signed 64-bit integer.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common/hd.h"

namespace atk {

constexpr uint64_t kOne = uint64_t{1} << 40;  // the weight of a most likely token
constexpr int64_t kMaxTokens = (int64_t{1} << 23) - 1;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kLastToken = std::numeric_limits<int32_t>::max();

// The ranges of what a row is drawn with; NaN is in none.
ATK_HD bool is_temperature(float x) {
  return x >= 0.0f && x < kInfinity;
}
ATK_HD bool is_top_k(int32_t k) {
  return k >= 0;
}
ATK_HD bool is_top_p(float p) {
  return p > 0.0f && p <= 1.0f;
}
ATK_HD bool is_min_p(float p) {
  return p >= 0.0f && p <= 1.0f;
}

// Operations that no compiler fuses or replaces: the sources that use them on a CPU are built with -ffp-contract=off.
#ifdef __CUDA_ARCH__
ATK_HD float times(float a, float b) {
  return __fmul_rn(a, b);
}
ATK_HD float plus(float a, float b) {
  return __fadd_rn(a, b);
}
ATK_HD float over(float a, float b) {
  return __fdiv_rn(a, b);
}
#else
ATK_HD float times(float a, float b) {
  return a * b;
}
ATK_HD float plus(float a, float b) {
  return a + b;
}
ATK_HD float over(float a, float b) {
  return a / b;
}
#endif

// trunc(2^40 e^-y) for y >= 0; 0 from y = 29 on, and for NaN. e^-y = 2^-n e^r with n = round(y / ln 2), |r| < 0.347:
// adding 1.5 * 2^23 rounds, n ln 2 is taken in two parts, of which the first is exact, and e^r is a polynomial
// (minimax, 3e-9). With the roundings e^-y is right to one unit in the last place of a float (all y tried).
ATK_HD uint64_t weight_of(float y) {
  constexpr int32_t kMost = 0x41e80000;  // 29; a minimum of integers, because a choice of floats would be a branch
  constexpr float kRound = 12582912.0f;
  const int32_t bits = std::bit_cast<int32_t>(y) & 0x7fffffff;
  y = std::bit_cast<float>(bits < kMost ? bits : kMost);
  const float biased = plus(times(y, 0x1.715476p+0f), kRound);
  const float n = plus(biased, -kRound);
  const float r = plus(plus(times(n, 0x1.62e4p-1f), -y), times(n, 0x1.7f7d1cp-20f));
  float q = 0x1.6a22dp-10f;
  q = plus(times(q, r), 0x1.123abap-7f);
  q = plus(times(q, r), 0x1.5558f6p-5f);
  q = plus(times(q, r), 0x1.55549p-3f);
  q = plus(times(q, r), 0x1.fffffcp-2f);
  const float power = plus(1.0f, plus(r, times(times(r, r), q)));  // 2^24 power is an integer below 2^25
  const uint32_t shift = std::bit_cast<uint32_t>(biased) - std::bit_cast<uint32_t>(kRound);  // n
  return static_cast<uint64_t>(static_cast<int32_t>(times(power, 16777216.0f))) << 16 >> shift;
}

ATK_HD uint64_t weight_of(float x, float max, float temperature) {
  return weight_of(over(plus(max, -x), temperature));
}

// Unsigned integers in the order of floats, -0 as +0. NaNs lie outside [key of -inf, key of inf].
ATK_HD uint32_t key_of(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(plus(x, 0.0f));
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

ATK_HD float float_of(uint32_t key) {
  return std::bit_cast<float>(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// A key is selected digit by digit: bits [21, 32), [10, 21) and [0, 10).
constexpr int kDigits = 3;
constexpr int kBins = 1 << 11;

ATK_HD int shift_of(int digit) {
  return digit == 0 ? 21 : digit == 1 ? 10 : 0;
}

ATK_HD uint32_t digit_of(uint32_t key, int digit) {
  return key >> shift_of(digit) & (digit < 2 ? kBins - 1 : kBins / 2 - 1);
}

// The bits above a digit; none above the first.
ATK_HD uint32_t mask_above(int digit) {
  return digit == 0 ? 0 : ~0u << shift_of(digit - 1);
}

// What the filters leave: logits above `lowest`, equal ones up to index `last`; and weights of at least `least`.
struct Kept {
  float lowest = -kInfinity;
  int32_t last = kLastToken;
  uint64_t least = 0;

  ATK_HD bool has(float x, int32_t v) const { return (x > lowest) | ((x == lowest) & (v <= last)); }

  ATK_HD uint64_t weight(float x, int32_t v, float max, float temperature) const {
    const uint64_t weight = weight_of(x, max, temperature);
    const bool kept = has(x, v) & (static_cast<int64_t>(weight) >= static_cast<int64_t>(least));
    return weight & (uint64_t{0} - kept);
  }
};

// top-p keeps tokens in their order while the weight before them is less than this; the first is always kept.
ATK_HD uint64_t top_p_weight(float top_p, uint64_t total) {
  const uint64_t weight = static_cast<uint64_t>(static_cast<double>(top_p) * static_cast<double>(total));
  return weight > 0 ? weight : 1;
}

// min-p keeps weights of at least this: min_p times that of the most likely token, rounded up.
ATK_HD uint64_t min_p_weight(float min_p) {
  const double least = static_cast<double>(min_p) * static_cast<double>(kOne);
  const uint64_t weight = static_cast<uint64_t>(least);
  return weight + (static_cast<double>(weight) < least);
}

// Which token: the first whose weight, with all before it, is more than this. `bits` of 53, read as a fraction of 1.
ATK_HD uint64_t drawn_weight(uint64_t bits, uint64_t total) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(bits) * total >> 53);
}

// The natural logarithm of a token's share: its weight as a real number, of `all` weights before the filters.
ATK_HD float log_probability(float x, float max, float temperature, uint64_t all) {
  const double y = (static_cast<double>(max) - static_cast<double>(x)) / static_cast<double>(temperature);
  return static_cast<float>(-y - std::log(static_cast<double>(all) / static_cast<double>(kOne)));
}

}  // namespace atk
