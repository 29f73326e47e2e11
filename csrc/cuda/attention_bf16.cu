// A file for each dtype, so that they are compiled side by side.
#include "cuda/attention.cuh"
#include "cuda/attention_dtypes.h"

namespace atk::cuda {

void attend_bf16(const AttentionLaunch& x, cudaStream_t stream) {
  attend_dims<bf16>(x, stream);
}

SharedPlan shared_bf16(int64_t D, int64_t Dv, double rows, int64_t limit) {
  return shared_dims<bf16>(D, Dv, rows, limit);
}

}  // namespace atk::cuda
