// Where the rows of a cache lie, read off its View.
#pragma once

#include "common/slots.h"
#include "common/view.h"

namespace atk {

inline CacheLayout layer_layout(const View& cache) {  // [P, S, H, D]
  return {cache.shape[1], cache.strides[0], cache.strides[1], cache.strides[2]};
}

inline CacheLayout group_layout(const View& caches) {  // [L, P, S, H, D]
  return {caches.shape[2], caches.strides[1], caches.strides[2], caches.strides[3]};
}

inline int64_t row_bytes(const View& view) {
  return view.shape[view.ndim - 1] * element_size(view.dtype);
}

}  // namespace atk
