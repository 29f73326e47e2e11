// How kernels are launched and where a block's shared memory is. Together with ptx.h this is all of CUDA's own syntax
// that kernels need, so that the tests can run the same sources on a CPU (tests/emulator has its own two headers).
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace atk::cuda {

// Raises with the op and CUDA's own words.
inline void check(const char* op, cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(status));
}

// Bytes of shared memory that a block may ask for on the current device.
inline int shared_limit(const char* op) {
  int device = 0, bytes = 0;
  check(op, cudaGetDevice(&device));
  check(op, cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// Blocks of `threads` threads on `stream` of the current device; `shared` bytes of dynamic shared memory for each.
template <class Job>
void launch(const char* op, void (*kernel)(Job), dim3 blocks, unsigned threads, size_t shared, cudaStream_t stream,
            const Job& job) {
  constexpr size_t kAlwaysAllowed = 48 << 10;
  if (shared > kAlwaysAllowed)
    check(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  kernel<<<blocks, threads, shared, stream>>>(job);
  check(op, cudaGetLastError());
}

#ifdef __CUDACC__
// The block's dynamic shared memory, aligned to 128 bytes.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char atk_shared[];
  return atk_shared;
}
#endif

}  // namespace atk::cuda
