// CUDA's own names for g++: what csrc/cuda and csrc/bindings/cuda.cpp take from the toolkit. The chip is the emulator's
// (block.h). What is not here is not emulated, __shared__ arrays among it: a kernel that uses it does not compile.
#pragma once

#include <math.h>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint3 {
  unsigned x, y, z;
};

// Of the thread that runs; the emulator sets them.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// ---- vectors -------------------------------------------------------------------------------------------------------

#define ATK_VECTORS(name, T)                             \
  struct alignas(2 * sizeof(T)) name##2 {                \
    T x, y;                                              \
  };                                                     \
  struct alignas(4 * sizeof(T)) name##4 {                \
    T x, y, z, w;                                        \
  };                                                     \
  constexpr name##2 make_##name##2(T x, T y) {           \
    return {x, y};                                       \
  }                                                      \
  constexpr name##4 make_##name##4(T x, T y, T z, T w) { \
    return {x, y, z, w};                                 \
  }
ATK_VECTORS(int, int)
ATK_VECTORS(uint, unsigned)
ATK_VECTORS(float, float)
#undef ATK_VECTORS

// ---- functions of a thread -----------------------------------------------------------------------------------------

template <class T>
  requires std::is_arithmetic_v<T>
constexpr T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);  // the number where one is NaN
  return b < a ? b : a;
}

template <class T>
  requires std::is_arithmetic_v<T>
constexpr T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
  return a < b ? b : a;
}

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}

inline int __popc(unsigned x) {
  return std::popcount(x);
}

inline int __popcll(unsigned long long x) {
  return std::popcount(x);
}

inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}

inline int __ffs(int x) {  // counted from 1; 0 for none
  return __builtin_ffs(x);
}

// Threads never run at the same time, so these need no more than they say.
template <class T>
concept AtomicInt = std::integral<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <AtomicInt T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  using U = std::make_unsigned_t<T>;
  *at = static_cast<T>(static_cast<U>(old) + static_cast<U>(value));
  return old;
}

template <AtomicInt T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = max(old, value);
  return old;
}

template <AtomicInt T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at = old | value;
  return old;
}

#define CUDART_VERSION 0

// ---- runtime -------------------------------------------------------------------------------------------------------

using cudaStream_t = struct CUstream_st*;

enum cudaError_t { cudaSuccess = 0 };

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
