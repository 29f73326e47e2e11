// Online softmax of 16 rows against a warp's tokens, 8 at a time, in float32 without tensor cores. For products a pair
// of lanes has a row, each with 4 tokens; for values a lane has every 32nd dim of all rows.
#pragma once

#include "cuda/attend_half.cuh"

namespace atk::cuda {

template <int BD, int BDV>
struct FloatTile {
  static constexpr int M = 16, kTokens = 8, kDims = (BDV + kWarp - 1) / kWarp;
  static constexpr int kQ = BD + 4;
  using Ring = Stage<float, BD, BDV, kTokens>;

  const AttentionJob& job;
  const float* queries;
  float (*weights)[kTokens + 1];  // of this warp, [M]: the last is what the state is multiplied by
  int begin, end, live;           // of row lane / 2; rows from `live` on are not there
  float max = -INFINITY, sum = 0.0f;
  float out[M][kDims] = {};

  __device__ __forceinline__ FloatTile(const AttentionJob& job, const float* queries, const TileRow* rows,
                                       int only_entry, int live, float (*weights)[M][kTokens + 1])
      : job(job), queries(queries), weights(weights[threadIdx.x / kWarp]), live(live) {
    const TileRow& row = rows[threadIdx.x % kWarp / 2];
    const bool mine = only_entry < 0 || row.entry == only_entry;
    begin = mine ? row.begin : 0, end = mine ? row.end : 0;
  }

  __device__ __forceinline__ void take(const Ring& stage, int first) {
    const int lane = threadIdx.x % kWarp, row = lane / 2, token = lane % 2 * 4;
    float s[4] = {};
    if (row < live)
      for (int d = 0; d < BD; d += 4) {
        const auto q = *reinterpret_cast<const float4*>(queries + row * kQ + d);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const auto k = *reinterpret_cast<const float4*>(&stage.k[token + i][d]);
          s[i] += q.x * k.x, s[i] += q.y * k.y, s[i] += q.z * k.z, s[i] += q.w * k.w;
        }
      }
    float high = max;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = first + token + i;
      s[i] = t >= begin && t < end ? logit(job, s[i]) : -INFINITY;
      high = fmaxf(high, s[i]);
    }
    high = fmaxf(high, shuffle_xor(high, 1));
    const float safe = high == -INFINITY ? 0.0f : high, keep = exp2_fast(max - safe);
    max = high;
    float added = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) added += weights[row][token + i] = exp2_fast(s[i] - safe);
    sum = sum * keep + added;
    if (token == 0) weights[row][kTokens] = keep;
    sync_warp();
    add_values(stage);
    sync_warp();
  }

  __device__ __forceinline__ void add_values(const Ring& stage) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int row = 0; row < M; ++row)
#pragma unroll
      for (int j = 0; j < kDims; ++j) out[row][j] *= weights[row][kTokens];
#pragma unroll 2
    for (int token = 0; token < kTokens; ++token) {
      float v[kDims];
#pragma unroll
      for (int j = 0; j < kDims; ++j) v[j] = stage.v[token][j * kWarp + lane];
#pragma unroll
      for (int row = 0; row < M; ++row)
        if (row < live) {
          const float weight = weights[row][token];
#pragma unroll
          for (int j = 0; j < kDims; ++j) out[row][j] += weight * v[j];
        }
    }
  }

  __device__ __forceinline__ void finish(WarpResults<M, BDV>& results) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const float total = sum + shuffle_xor(sum, 1);
    if (lane % 2 == 0) results.max[warp][lane / 2] = max, results.sum[warp][lane / 2] = total;
#pragma unroll
    for (int row = 0; row < M; ++row)
#pragma unroll
      for (int j = 0; j < kDims; ++j) results.out[warp][row][j * kWarp + lane] = out[row][j];
  }
};

}  // namespace atk::cuda
