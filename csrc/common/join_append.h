// join_append's arguments and the checks that read no device memory, for every device.
#pragma once

#include "common/check.h"

namespace atk {

// K and V of N tokens go from slot to slot in all layers, K rotated by the shift of its position.
struct JoinAppend {
  View k_caches, v_caches;  // [L, P, S, H, D], [L, P, S, H, Dv]
  View src_slots;           // [N] int64
  View dst_slots;           // [N] int64, distinct, none of them a source
  View cos, sin;            // [L, R] float32
  bool interleaved;

  Sizes check() const {
    Sizes sizes;
    sizes.bind("k_caches", k_caches, {"L", "P", "S", "H", "D"});
    sizes.bind("v_caches", v_caches, {"L", "P", "S", "H", "Dv"});
    sizes.bind("src_slots", src_slots, {"N"});
    sizes.bind("dst_slots", dst_slots, {"N"});
    sizes.bind("cos", cos, {"L", "R"});
    sizes.bind("sin", sin, {"L", "R"});
    check_storage_dtype("k_caches", k_caches);
    check_dtype("v_caches", v_caches, k_caches.dtype);
    check_last_contiguous("k_caches", k_caches);
    check_last_contiguous("v_caches", v_caches);
    for (auto [name, view] : {std::pair{"cos", &cos}, {"sin", &sin}}) {
      check_dtype(name, *view, DType::f32);
      check_last_contiguous(name, *view);
    }
    if (2 * sizes["R"] > sizes["D"])
      fail("cos", "R <= D / 2 = " + std::to_string(sizes["D"] / 2), std::to_string(sizes["R"]));
    check_dtype("src_slots", src_slots, DType::i64);
    check_dtype("dst_slots", dst_slots, DType::i64);
    return sizes;
  }
};

}  // namespace atk
