// Arguments of what stands between linear layers and attention in a decoder's step, and their checks.
#pragma once

#include "common/check.h"

namespace atk {

// y = weight * round(x / sqrt(mean(x^2) + eps)); `wide`: y = (weight + offset) * x / sqrt(mean(x^2) + eps), rounded to
// the dtype of y at the end alone. The sum of squares is added up in the order of a sum over `lanes` floats at a time,
// as torch does, so that bits agree with it.
struct RmsNorm {
  View x, y;    // [T, H, I]
  View weight;  // [I]
  float eps;
  int lanes;  // 8 or 16
  bool wide;
  float offset;

  Sizes check() const {
    Sizes sizes;
    sizes.bind("x", x, {"T", "H", "I"});
    sizes.bind("y", y, {"T", "H", "I"});
    sizes.bind("weight", weight, {"I"});
    check_storage_dtype("x", x);
    for (const auto& [name, view] : {std::pair{"x", &x}, {"y", &y}, {"weight", &weight}}) {
      check_dtype(name, *view, x.dtype);
      check_last_contiguous(name, *view);
    }
    if (lanes != 8 && lanes != 16) fail("lanes", "8 or 16", std::to_string(lanes));
    return sizes;
  }
};

// y = x / sqrt(sum(x^2) + eps), and that by `divisor` where it is not 1; y in float32. Sums as of RmsNorm.
struct L2Norm {
  View x;  // [T, H, I]
  View y;  // [T, H, I] float32
  float eps;
  float divisor;
  int lanes;  // 8 or 16

  Sizes check() const {
    Sizes sizes;
    sizes.bind("x", x, {"T", "H", "I"});
    sizes.bind("y", y, {"T", "H", "I"});
    check_storage_dtype("x", x);
    check_dtype("y", y, DType::f32);
    check_last_contiguous("x", x);
    check_last_contiguous("y", y);
    if (lanes != 8 && lanes != 16) fail("lanes", "8 or 16", std::to_string(lanes));
    return sizes;
  }
};

// y = x * cos + (-x2, x1) * sin for x = (x1, x2), each product and the sum rounded.
struct Rotate {
  View x, y;      // [T, H, D], D even
  View cos, sin;  // [T, D]

  Sizes check() const {
    Sizes sizes;
    sizes.bind("x", x, {"T", "H", "D"});
    sizes.bind("y", y, {"T", "H", "D"});
    sizes.bind("cos", cos, {"T", "D"});
    sizes.bind("sin", sin, {"T", "D"});
    check_storage_dtype("x", x);
    for (const auto& [name, view] : {std::pair{"x", &x}, {"y", &y}, {"cos", &cos}, {"sin", &sin}}) {
      check_dtype(name, *view, x.dtype);
      check_last_contiguous(name, *view);
    }
    if (sizes["D"] % 2) fail("x", "an even D", std::to_string(sizes["D"]));
    return sizes;
  }
};

// y = table[gate] * up: a function of 16-bit numbers by their bits, times another number, rounded.
struct Gate {
  View gate, up, y;  // [T, I] bfloat16 or float16
  View table;        // [65536], dtype of gate

  Sizes check() const {
    Sizes sizes;
    sizes.bind("gate", gate, {"T", "I"});
    sizes.bind("up", up, {"T", "I"});
    sizes.bind("y", y, {"T", "I"});
    sizes.bind("table", table, {"65536"});
    check_size("table", "65536 numbers", sizes["65536"], 65536);
    if (gate.dtype != DType::bf16 && gate.dtype != DType::f16)
      fail("gate", "bfloat16 or float16", dtype_name(gate.dtype));
    for (const auto& [name, view] : {std::pair{"gate", &gate}, {"up", &up}, {"y", &y}, {"table", &table}}) {
      check_dtype(name, *view, gate.dtype);
      check_last_contiguous(name, *view);
    }
    return sizes;
  }
};

// y = x * table[gate], rounded at the end alone: a function of 16-bit numbers by their bits with results in float32.
struct GateWide {
  View x, gate, y;  // [T, I] bfloat16 or float16
  View table;       // [65536] float32

  Sizes check() const {
    Sizes sizes;
    sizes.bind("x", x, {"T", "I"});
    sizes.bind("gate", gate, {"T", "I"});
    sizes.bind("y", y, {"T", "I"});
    sizes.bind("table", table, {"65536"});
    check_size("table", "65536 numbers", sizes["65536"], 65536);
    check_dtype("table", table, DType::f32);
    if (x.dtype != DType::bf16 && x.dtype != DType::f16) fail("x", "bfloat16 or float16", dtype_name(x.dtype));
    for (const auto& [name, view] : {std::pair{"x", &x}, {"gate", &gate}, {"y", &y}}) {
      check_dtype(name, *view, x.dtype);
      check_last_contiguous(name, *view);
    }
    check_last_contiguous("table", table);
    return sizes;
  }
};

// y = a + b, rounded.
struct Add {
  View a, b, y;  // [T, I]

  Sizes check() const {
    Sizes sizes;
    sizes.bind("a", a, {"T", "I"});
    sizes.bind("b", b, {"T", "I"});
    sizes.bind("y", y, {"T", "I"});
    check_storage_dtype("a", a);
    for (const auto& [name, view] : {std::pair{"a", &a}, {"b", &b}, {"y", &y}}) {
      check_dtype(name, *view, a.dtype);
      check_last_contiguous(name, *view);
    }
    return sizes;
  }
};

}  // namespace atk
