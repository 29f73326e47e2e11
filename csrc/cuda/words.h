// Rows move as the widest words that every address, size and stride allows: 16 bytes for the caches of most models.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>

#include "common/view.h"

namespace atk::cuda {

// The largest power of two up to 16 that divides the address, the strides and the row of every view, and `bytes`.
inline int64_t word_bytes(std::initializer_list<const View*> views, int64_t bytes = 16) {
  uint64_t bits = 16 | static_cast<uint64_t>(bytes);
  for (const View* view : views) {
    bits |= reinterpret_cast<uintptr_t>(view->data) | view->shape[view->ndim - 1] * element_size(view->dtype);
    for (int axis = 0; axis < view->ndim - 1; ++axis) bits |= view->strides[axis] * element_size(view->dtype);
  }
  return static_cast<int64_t>(bits & -bits);
}

// Calls f with a value of the word's type.
template <class F>
void with_word(int64_t bytes, const F& f) {
  switch (bytes) {
    case 16:
      return f(uint4{});
    case 8:
      return f(uint2{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint16_t{});
  }
}

}  // namespace atk::cuda
