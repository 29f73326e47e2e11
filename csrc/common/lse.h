// The one merge of partial attention results. Part i covers some of a row's keys and gives
//   out_i = sum_k exp(s_k) v_k / sum_k exp(s_k),   lse_i = log sum_k exp(s_k)   (-inf and 0 where it covers none);
// together  out = sum_i w_i out_i,  w_i = exp(lse_i - lse),  lse = log sum_i exp(lse_i).
// Parts are visited in the order of their index, so a result depends on nothing else.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/hd.h"

namespace atk {

struct LseMerge {
  float max;  // the largest lse_i, or 0 where all are -inf (or NaN), so that lse_i - max is NaN only for a NaN
  float sum;  // sum_i exp(lse_i - max)

  // Over lse_at(0) ... lse_at(n - 1), and a sink's logit (pass -inf without one).
  template <class LseAt>
  static ATK_HD LseMerge over(int64_t n, const LseAt& lse_at, float sink = -std::numeric_limits<float>::infinity()) {
    float max = sink;
    for (int64_t i = 0; i < n; ++i) max = lse_at(i) > max ? lse_at(i) : max;
    if (max == -std::numeric_limits<float>::infinity()) max = 0.0f;
    float sum = std::exp(sink - max);
    for (int64_t i = 0; i < n; ++i) sum += std::exp(lse_at(i) - max);
    return {max, sum};
  }

  ATK_HD float lse() const { return sum == 0.0f ? -std::numeric_limits<float>::infinity() : max + std::log(sum); }

  // Exactly zero for a part with nothing: its out_i must then be skipped, whatever it holds.
  ATK_HD float weight(float lse_i) const { return sum == 0.0f ? 0.0f : std::exp(lse_i - max) / sum; }
};

}  // namespace atk
