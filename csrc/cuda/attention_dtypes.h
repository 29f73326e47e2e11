// The attention kernels of each dtype.
#pragma once

#include "cuda/attention.h"

namespace atk::cuda {

void attend_f32(const AttentionLaunch& x, cudaStream_t stream);
SharedPlan shared_f32(int64_t D, int64_t Dv, double rows, int64_t limit);

void attend_bf16(const AttentionLaunch& x, cudaStream_t stream);
SharedPlan shared_bf16(int64_t D, int64_t Dv, double rows, int64_t limit);

void attend_f16(const AttentionLaunch& x, cudaStream_t stream);
SharedPlan shared_f16(int64_t D, int64_t Dv, double rows, int64_t limit);

}  // namespace atk::cuda
