// csrc/cuda/launch.h on the emulator.
#pragma once

#include <cuda_runtime.h>

#include "block.h"

namespace atk::cuda {

inline int shared_limit(const char*) {
  return static_cast<int>(emulator::shared_limit());
}

// Runs the whole grid before it returns. What a GPU says at the next synchronisation is thrown here.
template <class Job>
void launch(const char* op, void (*kernel)(Job), dim3 blocks, unsigned threads, size_t shared, cudaStream_t,
            const Job& job) {
  struct Call {
    void (*kernel)(Job);
    const Job& job;
  };
  const Call call = {kernel, job};
  emulator::run({.op = op,
                 .blocks = blocks,
                 .threads = threads,
                 .shared = shared,
                 .thread =
                     [](const void* call) {
                       const auto& [kernel, job] = *static_cast<const Call*>(call);
                       kernel(job);
                     },
                 .call = &call});
}

inline char* shared_memory() {
  return emulator::shared_memory();
}

}  // namespace atk::cuda
