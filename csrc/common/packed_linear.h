// packed_linear's arguments and their checks.
#pragma once

#include "common/check.h"

namespace atk {

// Weights of I inputs and O outputs, as the kernels read them (asyncthink_kernels/packed.py has the same in Python):
// kPackedBlock outputs at a time, input after input; of 16-bit weights two inputs of an output side by side.
constexpr int64_t kPackedBlock = 32;

struct PackedLinear {
  View x;             // [T, I]
  View packed;        // [N, I, 32] float32 or [N, I / 2, 32, 2] bfloat16, N = ceil(O / 32)
  OptionalView bias;  // [O]
  View out;           // [T, O]

  Sizes check() const {
    Sizes sizes;
    sizes.bind("x", x, {"T", "I"});
    sizes.bind("out", out, {"T", "O"});
    if (bias) sizes.bind("bias", *bias, {"O"});
    if (x.dtype != DType::f32 && x.dtype != DType::bf16) fail("x", "float32 or bfloat16", dtype_name(x.dtype));
    const int64_t pair = x.dtype == DType::f32 ? 1 : 2, N = (sizes["O"] + kPackedBlock - 1) / kPackedBlock;
    if (pair == 1)
      sizes.bind("packed", packed, {"N", "I", "32"});
    else
      sizes.bind("packed", packed, {"N", "I/2", "32", "2"});
    check_size("packed", std::to_string(N) + " blocks", packed.shape[0], N);
    check_size("packed", std::to_string(sizes["I"]) + " inputs", packed.shape[1] * pair, sizes["I"]);
    check_size("packed", "32 outputs in a block", packed.shape[2], kPackedBlock);
    if (pair == 2) check_size("packed", "pairs in the last dimension", packed.shape[3], 2);
    for (const auto& [name, view] : {std::pair{"packed", &packed}, {"out", &out}}) check_dtype(name, *view, x.dtype);
    check_contiguous("packed", packed);
    check_last_contiguous("x", x);
    check_last_contiguous("out", out);
    if (bias) {
      check_dtype("bias", *bias, x.dtype);
      check_contiguous("bias", *bias);
    }
    return sizes;
  }
};

}  // namespace atk
