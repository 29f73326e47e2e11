// Arguments of what a decoder's step does to the recurrent states of its rows, and their checks. States lie in slots;
// which slots are those of the rows comes with each run.
#pragma once

#include "common/check.h"

namespace atk {

// x = states[slots], or states[slots] = x.
struct StateRows {
  View states;  // [S, F]
  View x;       // [B, F], of the same dtype

  Sizes check() const {
    Sizes sizes;
    sizes.bind("states", states, {"S", "F"});
    sizes.bind("x", x, {"B", "F"});
    check_dtype("x", x, states.dtype);
    check_contiguous("states", states);
    check_contiguous("x", x);
    return sizes;
  }
};

// The gated delta rule of one token in the state M [K, V] of each row and head, all float32:
//   M = M * decay;  delta = (v - sum_i M_i k_i) * beta;  M = M + k delta^T;  out = sum_i M_i q_i
// with each product and sum rounded. Sums over K are added up as torch adds them: the first `plain` columns row by row,
// the others in four chains of rows, both in levels against rounding.
struct DeltaRule {
  View states;  // [S, H, K, V]
  View decay;   // [B, H, K]
  View q, k;    // [B, H, K]
  View v, out;  // [B, H, V]
  View beta;    // [B, H]
  int64_t plain;

  Sizes check() const {
    Sizes sizes;
    sizes.bind("states", states, {"S", "H", "K", "V"});
    sizes.bind("decay", decay, {"B", "H", "K"});
    sizes.bind("q", q, {"B", "H", "K"});
    sizes.bind("k", k, {"B", "H", "K"});
    sizes.bind("v", v, {"B", "H", "V"});
    sizes.bind("beta", beta, {"B", "H"});
    sizes.bind("out", out, {"B", "H", "V"});
    for (const auto& [name, view] : {std::pair{"states", &states},
                                     {"decay", &decay},
                                     {"q", &q},
                                     {"k", &k},
                                     {"v", &v},
                                     {"beta", &beta},
                                     {"out", &out}})
      check_dtype(name, *view, DType::f32);
    check_contiguous("states", states);
    for (const auto& [name, view] : {std::pair{"q", &q}, {"k", &k}, {"v", &v}, {"out", &out}})
      check_last_contiguous(name, *view);
    if (plain < 0 || plain > sizes["V"])
      fail("plain", "at most " + std::to_string(sizes["V"]) + " columns", std::to_string(plain));
    return sizes;
  }
};

// A causal convolution of one token over the last K tokens of each channel, which are the state W [C, K] of a row:
//   W = (W_1, ..., W_{K-1}, x);  y = table[round(bias + sum_k W_k weight_k)]
// Sums in float32, one after the other, with each product rounded unless they are `fused`; without a table, y is the
// rounded sum.
struct ConvUpdate {
  View states;         // [S, C, K]
  View x;              // [B, C]
  View weight;         // [C, K]
  OptionalView bias;   // [C]
  OptionalView table;  // [65536], a function of 16-bit numbers by their bits
  View y;              // [B, C]
  bool fused;

  Sizes check() const {
    Sizes sizes;
    sizes.bind("states", states, {"S", "C", "K"});
    sizes.bind("x", x, {"B", "C"});
    sizes.bind("weight", weight, {"C", "K"});
    sizes.bind("y", y, {"B", "C"});
    if (bias) sizes.bind("bias", *bias, {"C"});
    check_storage_dtype("x", x);
    for (const auto& [name, view] : {std::pair{"states", &states}, {"weight", &weight}, {"y", &y}})
      check_dtype(name, *view, x.dtype);
    check_contiguous("states", states);
    check_contiguous("weight", weight);
    if (bias) {
      check_dtype("bias", *bias, x.dtype);
      check_contiguous("bias", *bias);
    }
    if (table) {
      sizes.bind("table", *table, {"65536"});
      check_size("table", "65536 numbers", sizes["65536"], 65536);
      if (x.dtype == DType::f32) fail("x", "bfloat16 or float16 beside a table", dtype_name(x.dtype));
      check_dtype("table", *table, x.dtype);
      check_contiguous("table", *table);
    }
    if (sizes["K"] < 1) fail("states", "at least one token", "0");
    return sizes;
  }
};

}  // namespace atk
