// join_append on the device: all layers in one launch, K turned on the way, 16 bytes a thread wherever sizes and
// addresses allow. The limit is 2 (D + Dv) H N L itemsize bytes over the memory's bandwidth.
#pragma once

#include "common/dtype.h"
#include "common/rope.h"
#include "common/tiles.h"
#include "cuda/ptx.h"

namespace atk::cuda {

constexpr unsigned kJoinThreads = 256;
constexpr unsigned kJoinPieces = 4 * kJoinThreads;  // of a block

// Of K or V in all layers; strides in elements.
struct JoinRows {
  void* data;
  int64_t layer_stride;
  CacheLayout layout;
};

struct JoinJob {
  JoinRows k, v;
  const int64_t *src_slots, *dst_slots;
  int64_t src_stride, dst_stride, num_slots, tokens, heads;
  const float *cos, *sin;  // [L, R]
  int64_t cos_stride, sin_stride, D, R;
  uint32_t k_units, v_units;  // pieces of a row
  uint32_t block_rows;
};

// n elements as one word.
template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T values[n];
};

template <bool interleaved, class T, int n>
__device__ __forceinline__ void turn(Pack<T, n>& first, Pack<T, n>& second, const float* cos, const float* sin) {
  T both[2 * n];
#pragma unroll
  for (int j = 0; j < n; ++j) both[j] = first.values[j], both[n + j] = second.values[j];
#pragma unroll
  for (int j = 0; j < n; ++j) {
    T& x = interleaved ? both[2 * j] : both[j];
    T& y = interleaved ? both[2 * j + 1] : both[n + j];
    float a = to_float(x), b = to_float(y);
    rotate(a, b, cos[j], sin[j]);
    x = from_float<T>(a), y = from_float<T>(b);
  }
#pragma unroll
  for (int j = 0; j < n; ++j) first.values[j] = both[j], second.values[j] = both[n + j];
}

// Rows (token, head) of layer blockIdx.y; a thread's pieces are a pair of words of K that is turned, or one word of K
// or V that is copied. A slot outside the cache traps.
template <class T, int n, bool interleaved>
__global__ void __launch_bounds__(kJoinThreads) join_rows(const __grid_constant__ JoinJob job) {
  using Word = Pack<T, n>;
  const int64_t layer = blockIdx.y, first_row = static_cast<int64_t>(blockIdx.x) * job.block_rows;
  const uint32_t units = job.k_units + job.v_units;
  for (uint32_t i = threadIdx.x; i < job.block_rows * units; i += kJoinThreads) {
    const RowPiece piece = row_piece(first_row, i, units, job.heads);
    if (piece.token >= job.tokens) return;
    const int64_t src = job.src_slots[piece.token * job.src_stride], dst = job.dst_slots[piece.token * job.dst_stride];
    if (src < 0 || src >= job.num_slots || dst < 0 || dst >= job.num_slots) trap();
    const bool of_k = piece.unit < static_cast<int64_t>(job.k_units);
    const JoinRows& rows = of_k ? job.k : job.v;
    T* const data = static_cast<T*>(rows.data) + layer * rows.layer_stride;
    const T* const from = data + rows.layout.row(src, piece.head);
    T* const to = data + rows.layout.row(dst, piece.head);
    const auto move = [&](int64_t at) {
      *reinterpret_cast<Word*>(to + at) = *reinterpret_cast<const Word*>(from + at);
    };
    if (!of_k) {
      move((piece.unit - static_cast<int64_t>(job.k_units)) * n);
    } else if (piece.unit >= job.R / n) {
      move(unturned_word(piece.unit, n, job.R));
    } else {
      const RopeWords at = rope_words(piece.unit, n, job.R, interleaved);
      Word first = *reinterpret_cast<const Word*>(from + at.first);
      Word second = *reinterpret_cast<const Word*>(from + at.second);
      const int64_t pair = static_cast<int64_t>(piece.unit) * n;
      turn<interleaved>(first, second, job.cos + layer * job.cos_stride + pair,
                        job.sin + layer * job.sin_stride + pair);
      *reinterpret_cast<Word*>(to + at.first) = first;
      *reinterpret_cast<Word*>(to + at.second) = second;
    }
  }
}

}  // namespace atk::cuda
