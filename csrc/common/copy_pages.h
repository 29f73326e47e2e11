// copy_pages' arguments and the checks that read no device memory, for every device.
#pragma once

#include "common/check.h"

namespace atk {

// Whole pages, in all layers.
struct CopyPages {
  View k_caches, v_caches;  // [L, P, S, H, D], [L, P, S, H, Dv]
  View src, dst;            // [n] int64 page ids; dst distinct, none of them a source

  Sizes check() const {
    Sizes sizes;
    sizes.bind("k_caches", k_caches, {"L", "P", "S", "H", "D"});
    sizes.bind("v_caches", v_caches, {"L", "P", "S", "H", "Dv"});
    sizes.bind("src", src, {"n"});
    sizes.bind("dst", dst, {"n"});
    check_storage_dtype("k_caches", k_caches);
    check_dtype("v_caches", v_caches, k_caches.dtype);
    check_last_contiguous("k_caches", k_caches);
    check_last_contiguous("v_caches", v_caches);
    check_dtype("src", src, DType::i64);
    check_dtype("dst", dst, DType::i64);
    return sizes;
  }
};

}  // namespace atk
