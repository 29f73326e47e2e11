// csrc/cuda/launch.h on the emulator.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace atk::cuda {

inline void check(const char* op, cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(status));
}

inline int shared_limit(const char*) {
  return static_cast<int>(emulator::shared_limit());
}

// Runs the whole grid before it returns. What a GPU says at the next synchronisation is thrown here.
template <class Job>
void launch(const char* op, void (*kernel)(Job), dim3 blocks, unsigned threads, size_t shared, cudaStream_t,
            const Job& job) {
  emulator::launch(op, blocks, threads, shared, [&] { kernel(job); });
}

inline char* shared_memory() {
  return emulator::shared_memory();
}

}  // namespace atk::cuda
