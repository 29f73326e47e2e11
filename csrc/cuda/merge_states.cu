#include "cuda/merge_states.cuh"

#include <algorithm>

#include "common/slots.h"
#include "cuda/launch.h"
#include "cuda/ops.h"

namespace atk::cuda {

void merge_states(const MergeStates& a, cudaStream_t stream) {
  const Sizes sizes = a.check();
  MergeJob job = {.outs = a.outs.data,
                  .lses = a.lses.as<const float>(),
                  .out = a.out.data,
                  .lse = a.lse.as<float>(),
                  .outs_state_stride = a.outs.strides[0],
                  .outs_row_stride = a.outs.strides[1],
                  .outs_head_stride = a.outs.strides[2],
                  .lses_state_stride = a.lses.strides[0],
                  .lses_row_stride = a.lses.strides[1],
                  .lses_head_stride = a.lses.strides[2],
                  .out_row_stride = a.out.strides[0],
                  .out_head_stride = a.out.strides[1],
                  .lse_row_stride = a.lse.strides[0],
                  .lse_head_stride = a.lse.strides[1],
                  .rows = sizes["T"],
                  .heads = sizes["H"],
                  .states = static_cast<int>(sizes["n"]),
                  .first_dim = 0,
                  .dims = 0};
  if (job.rows * job.heads == 0) return;
  const dim3 blocks(static_cast<unsigned>(ceil_div(job.rows * job.heads, kMergeThreads / kWarp)));
  const int Dv = static_cast<int>(sizes["Dv"]);
  const auto run = [&](auto kernel) {  // once for the values of most models; wider ones in pieces
    do {
      job.dims = std::min(Dv - job.first_dim, kLaneDims * kWarp);
      launch("merge_states", kernel, blocks, kMergeThreads, 0, stream, job);
      job.first_dim += job.dims;
    } while (job.first_dim < Dv);
  };
  switch (a.outs.dtype) {
    case DType::f32:
      return run(merge_rows<float>);
    case DType::bf16:
      return run(merge_rows<bf16>);
    default:
      return run(merge_rows<f16>);
  }
}

}  // namespace atk::cuda
