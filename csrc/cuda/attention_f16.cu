// A file for each dtype, so that they are compiled side by side.
#include "cuda/attention.cuh"
#include "cuda/attention_dtypes.h"

namespace atk::cuda {

void attend_f16(const AttentionLaunch& x, cudaStream_t stream) {
  attend_dims<f16>(x, stream);
}

SharedPlan shared_f16(int64_t D, int64_t Dv, double rows, int64_t limit) {
  return shared_dims<f16>(D, Dv, rows, limit);
}

}  // namespace atk::cuda
