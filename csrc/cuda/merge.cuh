// The merge of a row's partial results (common/lse.h) by one warp: weights by lanes, sums over parts in their order.
#pragma once

#include <cmath>

#include "common/dtype.h"
#include "cuda/ptx.h"

namespace atk::cuda {

constexpr int kLaneDims = 8;  // dims of a lane: Dv up to 256

struct Merged {
  float out[kLaneDims];  // dims lane, lane + 32, ...
  float lse;
};

// Over parts 0 ... n - 1: `lse_at(i)` natural, `part_at(i)` points to Dv values; `sink` is one more logit, -inf for
// none. A part whose weight is 0 is skipped, whatever it holds. A lane's sum of weights covers every 32nd part; lanes
// are then added in a fixed pattern: the result depends only on the parts.
template <class LseAt, class PartAt>
__device__ __forceinline__ Merged merge_parts(int n, int Dv, const LseAt& lse_at, const PartAt& part_at, float sink) {
  const int lane = threadIdx.x % kWarp;
  float high = sink;
  for (int i = lane; i < n; i += kWarp) high = fmaxf(high, lse_at(i));
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) high = fmaxf(high, shuffle_xor(high, mask));
  if (high == -INFINITY) high = 0.0f;  // then lse - high is NaN only for a NaN
  float total = 0.0f;
  for (int i = lane; i < n; i += kWarp) total += expf(lse_at(i) - high);
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
  total += expf(sink - high);

  Merged merged = {{}, total == 0.0f ? -INFINITY : high + logf(total)};
  for (int first = 0; first < n; first += kWarp) {
    const float mine = first + lane < n && total != 0.0f ? expf(lse_at(first + lane) - high) / total : 0.0f;
    const int here = n - first < kWarp ? n - first : kWarp;
    for (int i = 0; i < here; ++i) {
      const float weight = shuffle(mine, i);
      if (weight == 0.0f) continue;
      const auto* const part = part_at(first + i);
#pragma unroll
      for (int j = 0; j < kLaneDims; ++j)
        if (const int d = lane + j * kWarp; d < Dv) merged.out[j] += weight * to_float(part[d]);
    }
  }
  return merged;
}

template <class T>
__device__ __forceinline__ void store_merged(const Merged& merged, int Dv, T* out, float* lse) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < kLaneDims; ++j)
    if (const int d = lane + j * kWarp; d < Dv) out[d] = from_float<T>(merged.out[j]);
  if (lane == 0) *lse = merged.lse;
}

}  // namespace atk::cuda
