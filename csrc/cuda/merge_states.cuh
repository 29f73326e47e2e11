// merge_states on the device: a warp for each row and head.
#pragma once

#include "cuda/merge.cuh"

namespace atk::cuda {

constexpr unsigned kMergeThreads = 128;

// Strides in elements.
struct MergeJob {
  const void* outs;
  const float* lses;
  void* out;
  float* lse;
  int64_t outs_state_stride, outs_row_stride, outs_head_stride, lses_state_stride, lses_row_stride, lses_head_stride;
  int64_t out_row_stride, out_head_stride, lse_row_stride, lse_head_stride, rows, heads;
  int states, first_dim, dims;
};

template <class T>
__global__ void __launch_bounds__(kMergeThreads, 8) merge_rows(const __grid_constant__ MergeJob job) {
  const int64_t work = static_cast<int64_t>(blockIdx.x) * (kMergeThreads / kWarp) + threadIdx.x / kWarp;
  if (work >= job.rows * job.heads) return;
  const int64_t row = work / job.heads, head = work - row * job.heads;
  const float* const lses = job.lses + row * job.lses_row_stride + head * job.lses_head_stride;
  const T* const outs = static_cast<const T*>(job.outs) + row * job.outs_row_stride + head * job.outs_head_stride;
  const Merged merged = merge_parts(
      job.states, job.dims, [&](int i) { return lses[i * job.lses_state_stride]; },
      [&](int i) { return outs + i * job.outs_state_stride + job.first_dim; }, -INFINITY);
  T* const out = static_cast<T*>(job.out) + row * job.out_row_stride + head * job.out_head_stride + job.first_dim;
  store_merged(merged, job.dims, out, job.lse + row * job.lse_row_stride + head * job.lse_head_stride);
}

}  // namespace atk::cuda
