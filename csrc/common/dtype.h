// The storage types and their conversions: bit arithmetic without branches, so that loops over them vectorise.
#pragma once

#include <bit>
#include <cstdint>

#include "common/hd.h"

namespace atk {

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

ATK_HD float to_float(float x) {
  return x;
}

// bfloat16 is the upper half of a float.
ATK_HD float to_float(bf16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// float16: move 10 mantissa bits up by 13 and the exponent's bias from 15 to 127. A subnormal m is m * 2^-24, and 2^-24
// is the last bit of the floats in [0.5, 1): put m there and subtract 0.5, which is exact.
ATK_HD float to_float(f16 x) {
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (magnitude < 0x7c00u ? 0x38000000u : 0x70000000u);  // else inf, NaN
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(0x3f000000u | magnitude) - 0.5f);
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  return std::bit_cast<float>(sign | (magnitude < 0x400u ? subnormal : normal));
}

template <class T>
ATK_HD T from_float(float x);

template <>
ATK_HD float from_float<float>(float x) {
  return x;
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
template <>
ATK_HD bf16 from_float<bf16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}

// Round to nearest, ties to even: by integer carry for normal results, by the addition of 0.5 for subnormal ones
// (above).
template <>
ATK_HD f16 from_float<f16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  const uint32_t normal = rounded < 0x47800000u ? (rounded - 0x38000000u) >> 13 : 0x7c00u;  // 65520 and more: inf
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t result = magnitude > 0x7f800000u ? 0x7e00u : finite;
  return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | result)};
}

}  // namespace atk
