// The CUDA ops: launched on the caller's stream of the current device; they allocate and synchronise nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "common/append_kv.h"

namespace atk::cuda {

inline void check_launch(const char* op) {
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(status));
}

void append_kv(const AppendKV& args, cudaStream_t stream);

}  // namespace atk::cuda
