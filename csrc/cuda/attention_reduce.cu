// Partial results of a row into its output: a warp for each row and query head.
#include "common/tiles.h"
#include "cuda/attention.h"
#include "cuda/launch.h"
#include "cuda/merge.cuh"

namespace atk::cuda {
namespace {

constexpr unsigned kReduceThreads = 128;

template <class T>
__global__ void __launch_bounds__(kReduceThreads, 8) reduce_rows(const __grid_constant__ ReduceJob job) {
  const int64_t work = static_cast<int64_t>(blockIdx.x) * (kReduceThreads / kWarp) + threadIdx.x / kWarp;
  if (work >= job.rows * job.Hq) return;
  const int64_t row = work / job.Hq;
  const int q_head = static_cast<int>(work - row * job.Hq), head = q_head / job.G, g = q_head % job.G;
  int64_t first;
  int n;
  if (job.row_ptr) {
    first = job.row_ptr[row];
    n = static_cast<int>(job.row_ptr[row + 1] - first);
  } else {
    const SplitRange splits = split_range(job.seq_lens[row], job.window, job.chunk);
    first = row * job.splits + splits.first;
    n = static_cast<int>(splits.last - splits.first);
  }
  const auto at = [&](int i) {
    const int64_t entry = job.row_ptr ? job.entry_of[first + i] : first + i;
    return (head * job.num_entries + entry) * job.G + g;
  };
  const Merged merged = merge_parts(
      n, job.Dv, [&](int i) { return job.part_lse[at(i)]; }, [&](int i) { return job.part_out + at(i) * job.Dv; },
      job.sinks ? job.sinks[q_head] : -INFINITY);
  T* const out = static_cast<T*>(job.out) + row * job.out_row_stride + q_head * job.out_head_stride;
  store_merged(merged, job.Dv, out, job.lse + row * job.lse_row_stride + q_head * job.lse_head_stride);
}

}  // namespace

void reduce_partials(const char* op, DType dtype, const ReduceJob& job, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(ceil_div(job.rows * job.Hq, kReduceThreads / kWarp)));
  const auto run = [&](auto kernel) { launch(op, kernel, blocks, kReduceThreads, 0, stream, job); };
  switch (dtype) {
    case DType::f32:
      return run(reduce_rows<float>);
    case DType::bf16:
      return run(reduce_rows<bf16>);
    default:
      return run(reduce_rows<f16>);
  }
}

}  // namespace atk::cuda
