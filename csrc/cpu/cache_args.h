// Checks and addresses shared by the ops that write a K/V cache.
#pragma once

#include <string>
#include <vector>

#include "common/check.h"
#include "common/layout.h"

namespace atk {

inline char* at(const View& view, int64_t element) {
  return view.as<char>() + element * element_size(view.dtype);
}

// Destinations are written by many threads at once, in no order: two equal ones, or one that is also read, would leave
// one or the other's bytes, by chance. Values are int64 in [0, limit), checked before, or kNoSlot, which is no
// destination; a bit for each is scratch of the thread.
inline void check_distinct(std::string_view name, const View& dst, int64_t limit, const View* src = nullptr) {
  thread_local std::vector<bool> seen;
  if (static_cast<int64_t>(seen.size()) < limit) seen.resize(limit);
  const auto value = [](const View& view, int64_t i) { return view.as<const int64_t>()[i * view.strides[0]]; };
  int64_t marked = 0, twice = -1, source = -1;
  for (; marked < dst.shape[0] && twice < 0; ++marked) {
    if (value(dst, marked) == kNoSlot) continue;
    if (seen[value(dst, marked)])
      twice = value(dst, marked);
    else
      seen[value(dst, marked)] = true;
  }
  for (int64_t i = 0; src && i < src->shape[0] && source < 0; ++i)
    if (seen[value(*src, i)]) source = value(*src, i);
  for (int64_t i = 0; i < marked; ++i)
    if (value(dst, i) != kNoSlot) seen[value(dst, i)] = false;
  if (twice >= 0) fail(name, "distinct values", std::to_string(twice) + " twice");
  if (source >= 0) fail(name, "no value that is also a source", std::to_string(source));
}

}  // namespace atk
