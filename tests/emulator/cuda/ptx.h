// csrc/cuda/ptx.h on the emulator. Every function takes its place in the kernel's source, for errors and to know
// whether lanes are at the same call.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "block.h"
#include "collectives.h"
#include "common/dtype.h"

namespace atk::cuda {

using emulator::Place;

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

template <class T>
T shuffle_xor(T value, int mask, Place place = Place::current()) {
  return emulator::exchange("shuffle_xor", value, static_cast<int>(threadIdx.x) ^ mask, place);
}

template <class T>
T shuffle(T value, int source, Place place = Place::current()) {
  return emulator::exchange("shuffle", value, source, place);
}

inline void sync_warp(Place place = Place::current()) {
  emulator::wait_for_warp("sync_warp", nullptr, [](void* const*) {}, place);
}

inline void sync_block(Place place = Place::current()) {
  emulator::wait_for_block("sync_block", false, place);
}

inline bool any_of_block(bool flag, Place place = Place::current()) {
  return emulator::wait_for_block("any_of_block", flag, place);
}

inline void trap(Place place = Place::current()) {
  emulator::fail("trap", place);
}

inline float exp2_fast(float x) {
  return std::exp2(x);
}

inline void copy_async(void* shared, const void* global, bool there, Place place = Place::current()) {
  emulator::copy_later(shared, global, there, place);
}

inline void copy_commit() {
  emulator::end_group();
}

template <int pending>
void copy_wait() {
  emulator::wait_for_groups(pending);
}

inline void load_matrices(uint32_t (&out)[4], const void* row, Place place = Place::current()) {
  emulator::load_matrices("load_matrices", out, row, false, place);
}

inline void load_transposed(uint32_t (&out)[4], const void* row, Place place = Place::current()) {
  emulator::load_matrices("load_transposed", out, row, true, place);
}

template <class T>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place = Place::current()) {
  emulator::multiply<T>(c, a, b0, b1, place);
}

template <class T>
uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

}  // namespace atk::cuda
