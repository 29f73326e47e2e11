// quantized_linear's arguments and their checks.
#pragma once

#include "common/check.h"

namespace atk {

// Weights of I inputs and O outputs, held as small unsigned integers u in groups of kQuantGroup inputs that share a
// scale d: d * (u - zero), or with an offset m in the place of a zero point d * u + m. The integers lie as the kernels
// read them (asyncthink_kernels/quantized.py has the same in Python): kQuantBlock outputs at a time, group after group,
// four inputs of one output side by side. A byte holds one integer of 8 bits or two of 4 bits, which are four inputs
// apart, the first one in the low half.
constexpr int64_t kQuantGroup = 32, kQuantBlock = 16;

struct QuantizedLinear {
  View x;             // [T, I]
  View quants;        // [N, G, B, 64] uint8, N = ceil(O / 16), G = ceil(I / 32), B = 8 (8 bits) or 4 (4 bits)
  View scales;        // [N, G, 16] float16
  OptionalView mins;  // [N, G, 16] float16: 4 bits alone
  OptionalView bias;  // [O] float32
  View out;           // [T, O]

  Sizes check() const {
    Sizes sizes;
    sizes.bind("x", x, {"T", "I"});
    sizes.bind("out", out, {"T", "O"});
    sizes.bind("quants", quants, {"N", "G", "B", "64"});
    sizes.bind("scales", scales, {"N", "G", "16"});
    if (mins) sizes.bind("mins", *mins, {"N", "G", "16"});
    if (bias) sizes.bind("bias", *bias, {"O"});
    check_storage_dtype("x", x);
    check_dtype("out", out, x.dtype);
    check_dtype("quants", quants, DType::u8);
    check_dtype("scales", scales, DType::f16);
    if (mins) check_dtype("mins", *mins, DType::f16);
    if (bias) check_dtype("bias", *bias, DType::f32);
    check_last_contiguous("x", x);
    check_last_contiguous("out", out);
    check_contiguous("quants", quants);
    check_contiguous("scales", scales);
    if (mins) check_contiguous("mins", *mins);
    if (bias) check_contiguous("bias", *bias);
    const int64_t blocks = (sizes["O"] + kQuantBlock - 1) / kQuantBlock;
    const int64_t groups = (sizes["I"] + kQuantGroup - 1) / kQuantGroup;
    check_size("quants", "N = ceil(O / 16) = " + std::to_string(blocks), sizes["N"], blocks);
    check_size("quants", "G = ceil(I / 32) = " + std::to_string(groups), sizes["G"], groups);
    check_size("quants", "64 bytes in the last dimension", sizes["64"], 4 * kQuantBlock);
    check_size("scales", "16 in the last dimension", sizes["16"], kQuantBlock);
    if (sizes["B"] != 8 && sizes["B"] != 4) fail("quants", "B = 8 or 4", std::to_string(sizes["B"]));
    if (mins && sizes["B"] != 4) fail("mins", "none beside 8 bits", "a tensor");
    return sizes;
  }
};

}  // namespace atk
