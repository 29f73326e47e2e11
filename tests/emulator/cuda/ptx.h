// csrc/cuda/ptx.h on the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "common/dtype.h"

namespace atk::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

template <class T>
T shuffle(T value, int source) {
  struct Brought {
    T value, result;
    int source;
  } mine = {value, value, source};
  emulator::meet_warp("shuffle", &mine, [](emulator::Lanes lanes) {
    for (void* lane : lanes) {
      auto& to = *static_cast<Brought*>(lane);
      to.result = static_cast<const Brought*>(lanes[to.source & (kWarp - 1)])->value;
    }
  });
  return mine.result;
}

template <class T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, static_cast<int>(threadIdx.x) ^ mask);
}

inline void sync_warp() {
  emulator::meet_warp("sync_warp", nullptr, [](emulator::Lanes) {});
}

inline void sync_block() {
  emulator::meet_block(false);
}

inline bool any_of_block(bool flag) {
  return emulator::meet_block(flag);
}

inline void trap() {
  emulator::fail("trap");
}

inline float exp2_fast(float x) {
  return std::exp2(x);
}

inline void copy_async(void* shared, const void* global, bool there) {
  emulator::copy_async(shared, global, there);
}

inline void copy_commit() {
  emulator::copy_commit();
}

template <int pending>
void copy_wait() {
  emulator::copy_wait(pending);
}

template <bool transposed>
void load_eights(const char* name, uint32_t (&out)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16)
    emulator::fail(std::string(name) + ": an address that is no multiple of 16");
  struct Brought {
    uint32_t* out;
    const uint16_t* row;
  } mine = {out, static_cast<const uint16_t*>(row)};
  emulator::meet_warp(name, &mine, [](emulator::Lanes lanes) {
    for (int lane = 0; lane < kWarp; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        const auto element = [&](int row, int column) -> uint32_t {
          return static_cast<const Brought*>(lanes[matrix * 8 + row])->row[column];
        };
        const int major = lane / 4, minor = 2 * (lane % 4);
        static_cast<Brought*>(lanes[lane])->out[matrix] = transposed
                                                              ? element(minor, major) | element(minor + 1, major) << 16
                                                              : element(major, minor) | element(major, minor + 1) << 16;
      }
  });
}

inline void load_matrices(uint32_t (&out)[4], const void* row) {
  load_eights<false>("load_matrices", out, row);
}

inline void load_transposed(uint32_t (&out)[4], const void* row) {
  load_eights<true>("load_transposed", out, row);
}

// The sum so far and 16 products, in the order of k, in double; rounded once.
template <class T>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Brought {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } mine = {c, a, {b0, b1}};
  emulator::meet_warp("multiply", &mine, [](emulator::Lanes lanes) {
    const auto half = [](uint32_t both, int i) -> double { return to_float(T{static_cast<uint16_t>(both >> 16 * i)}); };
    double a[16][16], b[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& from = *static_cast<const Brought*>(lanes[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 2; ++i) {
        for (int part = 0; part < 4; ++part) a[g + part % 2 * 8][2 * t + part / 2 * 8 + i] = half(from.a[part], i);
        for (int part = 0; part < 2; ++part) b[2 * t + part * 8 + i][g] = half(from.b[part], i);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
        float& to = static_cast<const Brought*>(lanes[lane])->c[i];
        double sum = to;
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        to = static_cast<float>(sum);
      }
  });
}

template <class T>
uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

}  // namespace atk::cuda
