// sample's arguments and the checks that read no device memory, for every device.
#pragma once

#include "common/check.h"
#include "common/sample_draw.h"

namespace atk {

// One token of each of N rows of V logits (common/sample_draw.h). All but the logits are contiguous.
struct Sample {
  View logits;                    // [N, V]
  View seeds, agents, positions;  // [N] int64
  View temperature;               // [N] float32, 0: the most likely token
  View top_k;                     // [N] int32, 0: all
  View top_p, min_p;              // [N] float32
  View tokens;                    // [N] int64
  View logprobs;                  // [N] float32

  Sizes check() const {
    const std::pair<const char*, const View*> of_rows[] = {
        {"seeds", &seeds},      {"agents", &agents}, {"positions", &positions}, {"temperature", &temperature},
        {"top_k", &top_k},      {"top_p", &top_p},   {"min_p", &min_p},         {"tokens", &tokens},
        {"logprobs", &logprobs}};
    Sizes sizes;
    sizes.bind("logits", logits, {"N", "V"});
    for (auto [name, view] : of_rows) sizes.bind(name, *view, {"N"});
    if (sizes["V"] < 1 || sizes["V"] > kMaxTokens)
      fail("logits", "V in [1, " + std::to_string(kMaxTokens) + "]", std::to_string(sizes["V"]));
    check_storage_dtype("logits", logits);
    check_last_contiguous("logits", logits);
    for (auto [name, view] : of_rows) {
      const bool floats = view == &temperature || view == &top_p || view == &min_p || view == &logprobs;
      check_dtype(name, *view, floats ? DType::f32 : view == &top_k ? DType::i32 : DType::i64);
      check_contiguous(name, *view);
    }
    return sizes;
  }
};

}  // namespace atk
