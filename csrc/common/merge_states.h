// merge_states' arguments and their checks, for every device.
#pragma once

#include "common/check.h"

namespace atk {

// n partial attention results over disjoint keys into one (common/lse.h).
struct MergeStates {
  View outs, lses;  // [n, T, H, Dv], [n, T, H] float32
  View out, lse;    // [T, H, Dv], [T, H] float32

  Sizes check() const {
    Sizes sizes;
    sizes.bind("outs", outs, {"n", "T", "H", "Dv"});
    sizes.bind("lses", lses, {"n", "T", "H"});
    sizes.bind("out", out, {"T", "H", "Dv"});
    sizes.bind("lse", lse, {"T", "H"});
    check_storage_dtype("outs", outs);
    check_dtype("out", out, outs.dtype);
    check_last_contiguous("outs", outs);
    check_last_contiguous("out", out);
    check_dtype("lses", lses, DType::f32);
    check_dtype("lse", lse, DType::f32);
    return sizes;
  }
};

}  // namespace atk
