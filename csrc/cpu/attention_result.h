// From partial results to a row's output: a single one, or merged with others and with the query head's sink.
#pragma once

#include <limits>

#include "common/lse.h"
#include "cpu/attention.h"
#include "cpu/simd.h"

namespace atk::ATK_ISA {

// The merge of a row's n partials and, if there are sinks, of the query head's sink.
template <class LseAt>
inline LseMerge merge_with_sink(const AttentionProblem& x, int64_t q_head, int64_t n, const LseAt& lse_at) {
  return LseMerge::over(n, lse_at, x.sinks ? x.sinks[q_head] : -std::numeric_limits<float>::infinity());
}

// out[begin, begin + width) = scale * o
template <class Storage>
inline void write_out(const AttentionProblem& x, int64_t row, int64_t q_head, int64_t begin, int64_t width,
                      const float* o, float scale) {
  auto* const out = static_cast<Storage*>(x.out) + row * x.out_row_stride + q_head * x.out_head_stride + begin;
  for (int64_t d = 0; d < width; ++d) out[d] = from_float<Storage>(o[d] * scale);
}

inline void write_lse(const AttentionProblem& x, int64_t row, int64_t q_head, float lse) {
  x.lse[row * x.lse_row_stride + q_head * x.lse_head_stride] = lse;
}

// The partials of all query heads of a kv head, in the plan's order. Overwrites their LSEs by their weights.
template <class Storage>
inline void reduce_row(const AttentionProblem& x, int64_t row, int64_t head) {
  constexpr int64_t kColumns = 64;  // summed at a time
  const int64_t n = x.partials_of(row), heads = x.heads * x.group();
  for (int64_t g = 0; g < x.group(); ++g) {
    const int64_t q_head = head * x.group() + g;
    const int64_t first = x.row_ptr[row] * heads + q_head - x.first_head * x.group();
    float* const lse = x.partial_lse + first;
    const LseMerge merge = merge_with_sink(x, q_head, n, [=](int64_t i) { return lse[i * heads]; });
    for (int64_t i = 0; i < n; ++i) lse[i * heads] = merge.weight(lse[i * heads]);
    for (int64_t d = 0; d < x.Dv; d += kColumns) {
      const int64_t width = x.Dv - d < kColumns ? x.Dv - d : kColumns;
      float sum[kColumns] = {};
      for (int64_t i = 0; i < n; ++i) {
        const float weight = lse[i * heads];
        const float* const part = x.partial_out + (first + i * heads) * x.Dv + d;
        if (weight != 0.0f)
          for (int64_t j = 0; j < width; ++j) sum[j] += weight * part[j];
      }
      write_out<Storage>(x, row, q_head, d, width, sum, 1.0f);
    }
    write_lse(x, row, q_head, merge.lse());
  }
}

}  // namespace atk::ATK_ISA
