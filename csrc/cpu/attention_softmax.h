// The online softmax of one row over one tile, in units of log2 so that the exponential is exp2.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/attention_gemm.h"

namespace atk::ATK_ISA {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kNothing = -1e30f;  // below any logit, and finite: a difference of two is never NaN

// Bits [begin, end) of a tile's 64 tokens; the bounds may lie outside of it.
constexpr uint64_t bits_between(int64_t begin, int64_t end) {
  const uint64_t below_end = end >= 64 ? ~uint64_t{0} : end <= 0 ? 0 : (uint64_t{1} << end) - 1;
  const uint64_t below_begin = begin >= 64 ? ~uint64_t{0} : begin <= 0 ? 0 : (uint64_t{1} << begin) - 1;
  return below_end & ~below_begin;
}

struct RowState {
  float max = kNothing;  // of the logits so far
  float sums[W] = {};    // per lane, of 2^(logit - max)

  float sum() const { return reduce_add(load(sums)); }
  float lse(float sum) const {
    return sum == 0.0f ? -std::numeric_limits<float>::infinity() : max * kLn2 + std::log(sum);
  }
};

// Scores q.k to logits in units of log2: log2(e) * scale * s, or log2(e) * cap * tanh(scale * s / cap).
struct Logits {
  Vec inner, outer;
  bool capped;

  Logits(float scale, float softcap)
      : inner(splat(softcap > 0.0f ? scale / softcap : scale * kLog2E)),
        outer(splat(softcap * kLog2E)),
        capped(softcap > 0.0f) {}

  Vec operator()(Vec score) const {
    const Vec x = mul(score, inner);
    return capped ? mul(outer, tanh(x)) : x;
  }
};

// Turns the scores s [tokens] of a row into probabilities 2^(logit - row.max), packed as Math's dwords into p, where
// `visible` has their bit, and into exact zeros elsewhere, whatever the score. Returns the factor by which the row's
// earlier output has to be scaled. `whole`: all bits are set, and none is looked at.
template <class Math, bool whole>
inline float softmax_of(const Logits& logits, float* s, uint64_t visible, int tokens, RowState& row, float* p) {
  Vec top = splat(kNothing);
  for (int t = 0; t < tokens; t += W) {
    const Vec x = whole ? logits(load(s + t)) : select(visible >> t, logits(load(s + t)), splat(kNothing));
    store(s + t, x);
    top = max(top, x);
  }
  const float tile_max = reduce_max(top);
  const float new_max = row.max > tile_max ? row.max : tile_max;
  const Vec alpha = exp2(splat(row.max - new_max)), shift = splat(new_max);
  row.max = new_max;
  Vec sum = mul(alpha, load(row.sums));
  const auto probability = [&](int t) {
    const Vec x =
        whole ? exp2(sub(load(s + t), shift)) : select(visible >> t, exp2(sub(load(s + t), shift)), splat(0.0f));
    sum = add(sum, x);
    return x;
  };
  if constexpr (Math::kElements == 1) {
    for (int t = 0; t < tokens; t += W) store(p + t, probability(t));
  } else {
    for (int t = 0; t < tokens; t += 2 * W) {
      const Vec first = probability(t);
      const Vec second = t + W < tokens ? probability(t + W) : splat(0.0f);
      Math::store(p + t / 2, first, second);
    }
  }
  store(row.sums, sum);
  return first_lane(alpha);
}

template <class Math>
inline float softmax(const Logits& logits, float* s, uint64_t visible, int tokens, RowState& row, float* p) {
  const bool whole = visible == bits_between(0, tokens);
  return whole ? softmax_of<Math, true>(logits, s, visible, tokens, row, p)
               : softmax_of<Math, false>(logits, s, visible, tokens, row, p);
}

}  // namespace atk::ATK_ISA
