// A file for each dtype, so that they are compiled side by side.
#include "cuda/attention.cuh"
#include "cuda/attention_dtypes.h"

namespace atk::cuda {

void attend_f32(const AttentionLaunch& x, cudaStream_t stream) {
  attend_dims<float>(x, stream);
}

SharedPlan shared_f32(int64_t D, int64_t Dv, double rows, int64_t limit) {
  return shared_dims<float>(D, Dv, rows, limit);
}

}  // namespace atk::cuda
