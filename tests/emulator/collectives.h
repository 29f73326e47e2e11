// What the lanes of a warp do together.
#pragma once

#include <cstdint>
#include <type_traits>

#include "block.h"

namespace atk::emulator {

template <class T>
struct Exchange {
  T value;
  int source;
  T result;
};

// The value of lane `source` modulo 32.
template <class T>
T exchange(const char* what, T value, int source, const Place& place) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "as CUDA's shuffles");
  Exchange<T> mine = {value, source, value};
  const auto carry = [](void* const* lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      auto& to = *static_cast<Exchange<T>*>(lanes[lane]);
      to.result = static_cast<const Exchange<T>*>(lanes[to.source & (kLanes - 1)])->value;
    }
  };
  wait_for_warp(what, &mine, carry, place);
  return mine.result;
}

void load_matrices(const char* what, uint32_t (&out)[4], const void* row, bool transposed, const Place& place);

// The 16 products of an element and its sum so far are added in float64 in the order of k, then rounded to float32
// once. A tensor core rounds more often, in ways that its makers do not document.
template <class T>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Place& place);

}  // namespace atk::emulator
