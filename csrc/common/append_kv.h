// append_kv's arguments and the checks that read no device memory, for every device.
#pragma once

#include "common/check.h"

namespace atk {

// K and V of T new tokens go to their slots.
struct AppendKV {
  View k, v;              // [T, H, D], [T, H, Dv]
  View k_cache, v_cache;  // [P, S, H, D], [P, S, H, Dv]
  View slots;             // [T] int64, distinct, or kNoSlot

  Sizes check() const {
    Sizes sizes;
    sizes.bind("k", k, {"T", "H", "D"});
    sizes.bind("v", v, {"T", "H", "Dv"});
    sizes.bind("k_cache", k_cache, {"P", "S", "H", "D"});
    sizes.bind("v_cache", v_cache, {"P", "S", "H", "Dv"});
    sizes.bind("slots", slots, {"T"});
    check_storage_dtype("k", k);
    for (auto [name, view] : {std::pair{"v", &v}, {"k_cache", &k_cache}, {"v_cache", &v_cache}})
      check_dtype(name, *view, k.dtype);
    check_dtype("slots", slots, DType::i64);
    for (auto [name, view] : {std::pair{"k", &k}, {"v", &v}, {"k_cache", &k_cache}, {"v_cache", &v_cache}})
      check_last_contiguous(name, *view);
    return sizes;
  }
};

}  // namespace atk
