// CUDA's own names for g++: what csrc/cuda and csrc/bindings/cuda.cpp take from the toolkit. The chip is emulator.h's.
// What is not here is not emulated, __shared__ arrays among it: a kernel that uses it does not compile.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __grid_constant__

#define CUDART_VERSION 0

#define threadIdx (emulator::thread().index)
#define blockIdx (emulator::thread().block)
#define blockDim (emulator::thread().threads)
#define gridDim (emulator::thread().blocks)

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

using cudaStream_t = void*;

enum cudaError_t { cudaSuccess };

enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };

inline const char* cudaGetErrorString(cudaError_t) {
  return "no error";
}

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 1;
  return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = static_cast<int>(emulator::shared_limit());
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
