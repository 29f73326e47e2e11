// Online softmax of 16 R rows against a warp's tokens, 16 at a time, on the tensor cores: bfloat16 and float16.
#pragma once

#include "cuda/attend_ring.cuh"

namespace atk::cuda {

constexpr int kFragment = 16;  // rows of a matrix product

// tanh-capped or plain logits in base 2.
__device__ __forceinline__ float logit(const AttentionJob& job, float product) {
  const float x = product * job.scale;
  return job.softcap == 0.0f ? x : tanhf(x) * job.softcap;
}

template <class T, int BD, int BDV, int R>
struct HalfTile {
  static constexpr int M = kFragment * R, kTokens = 16;
  static constexpr int kQ = BD + 8;  // stride of the queries in shared memory
  using Ring = Stage<T, BD, BDV, kTokens>;

  const AttentionJob& job;
  const T* queries;
  const TileRow* rows;
  int only_entry;              // the one entry of this pass, or -1 for all
  float max[R][2], sum[R][2];  // of rows g and g + 8 of a fragment, g = lane / 4; sums of this lane's own tokens
  float out[R][BDV / 8][4];

  __device__ __forceinline__ HalfTile(const AttentionJob& job, const T* queries, const TileRow* rows, int only_entry)
      : job(job), queries(queries), rows(rows), only_entry(only_entry) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) max[r][half] = -INFINITY, sum[r][half] = 0.0f;
#pragma unroll
      for (int n = 0; n < BDV / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[r][n][i] = 0.0f;
    }
  }

  // Products of the rows with 16 keys: two tiles of 8 tokens.
  __device__ __forceinline__ void score(const Ring& stage, float (&s)[R][2][4]) const {
    const int lane = threadIdx.x % kWarp, matrix = lane / 8, row = lane % 8;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[r][0][i] = s[r][1][i] = 0.0f;
#pragma unroll 4  // more would run ahead with more fragments than there are registers
    for (int d = 0; d < BD; d += 16) {
      uint32_t k[4], q[4];
      load_matrices(k, &stage.k[matrix / 2 * 8 + row][d + matrix % 2 * 8]);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        load_matrices(q, queries + (r * kFragment + matrix % 2 * 8 + row) * kQ + d + matrix / 2 * 8);
        multiply<T>(s[r][0], q, k[0], k[1]);
        multiply<T>(s[r][1], q, k[2], k[3]);
      }
    }
  }

  // Products to weights, in place; the state moves on to the new maximum. Elements i of a tile: row half i / 2, token
  // 2 (lane % 4) + i % 2.
  __device__ __forceinline__ void weigh(float (&s)[2][4], int r, int first) {
    const int token = first + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const TileRow& row = rows[r * kFragment + half * 8 + threadIdx.x % kWarp / 4];
      const int begin = row.begin, end = only_entry < 0 || row.entry == only_entry ? row.end : begin;
      float high = max[r][half];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int t = token + 8 * n + i;
          float& x = s[n][2 * half + i];
          x = t >= begin && t < end ? logit(job, x) : -INFINITY;
          high = fmaxf(high, x);
        }
      high = fmaxf(high, shuffle_xor(high, 1));
      high = fmaxf(high, shuffle_xor(high, 2));
      const float safe = high == -INFINITY ? 0.0f : high, keep = exp2_fast(max[r][half] - safe);
      max[r][half] = high;
      float weights = 0.0f;
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = s[n][2 * half + i];
          x = exp2_fast(x - safe);
          weights += x;
        }
      sum[r][half] = sum[r][half] * keep + weights;
#pragma unroll
      for (int n = 0; n < BDV / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) out[r][n][2 * half + i] *= keep;
    }
  }

  __device__ __forceinline__ void take(const Ring& stage, int first) {
    float s[R][2][4];
    score(stage, s);
    uint32_t p[R][4];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      weigh(s[r], r, first);
      p[r][0] = pack<T>(s[r][0][0], s[r][0][1]), p[r][1] = pack<T>(s[r][0][2], s[r][0][3]);
      p[r][2] = pack<T>(s[r][1][0], s[r][1][1]), p[r][3] = pack<T>(s[r][1][2], s[r][1][3]);
    }
    const int lane = threadIdx.x % kWarp, matrix = lane / 8, row = lane % 8;
#pragma unroll
    for (int d = 0; d < BDV; d += 16) {
      uint32_t v[4];
      load_transposed(v, &stage.v[matrix % 2 * 8 + row][d + matrix / 2 * 8]);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        multiply<T>(out[r][d / 8], p[r], v[0], v[1]);
        multiply<T>(out[r][d / 8 + 1], p[r], v[2], v[3]);
      }
    }
  }

  __device__ __forceinline__ void finish(WarpResults<M, BDV>& results) {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = r * kFragment + half * 8 + g;
        float total = sum[r][half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        if (t == 0) results.max[warp][row] = max[r][half], results.sum[warp][row] = total;
#pragma unroll
        for (int n = 0; n < BDV / 8; ++n) {
          results.out[warp][row][n * 8 + 2 * t] = out[r][n][2 * half];
          results.out[warp][row][n * 8 + 2 * t + 1] = out[r][n][2 * half + 1];
        }
      }
  }
};

}  // namespace atk::cuda
