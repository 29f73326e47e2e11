// Rotary position embedding: moving a cached K by `shift` positions rotates its first 2R dims by shift * inv_freq, pair
// by pair; dims beyond 2R are not rotated.
#pragma once

#include <cstdint>

#include "common/hd.h"

namespace atk {

// The two dims of pair i: (2i, 2i+1) interleaved, else half-split (i, i+R).
struct RopePair {
  int64_t a, b;
};

ATK_HD RopePair rope_pair(int64_t i, int64_t R, bool interleaved) {
  return interleaved ? RopePair{2 * i, 2 * i + 1} : RopePair{i, i + R};
}

// By +angle. The inverse rotation (the query's, in a `link` join) takes -sin.
ATK_HD void rotate(float& a, float& b, float cos, float sin) {
  const float rotated = a * cos - b * sin;
  b = b * cos + a * sin;
  a = rotated;
}

}  // namespace atk
