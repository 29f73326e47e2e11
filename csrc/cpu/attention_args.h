// What tree_attention and paged_attention check and fill in alike.
#pragma once

#include <string>
#include <utility>

#include "common/check.h"
#include "cpu/attention.h"
#include "cpu/cache_args.h"
#include "cpu/ops.h"

namespace atk {

inline void check_size(std::string_view name, const std::string& expected, int64_t size, int64_t wanted) {
  if (size != wanted) fail(name, expected, std::to_string(size));
}

// `rows` is the letter of the first dimension of q, bound before.
inline void check_attention(Sizes& sizes, const View& q, const View& k_cache, const View& v_cache,
                            const OptionalView& sinks, std::string_view rows, const View& out, const View& lse) {
  sizes.bind("k_cache", k_cache, {"P", "S", "H", "D"});
  sizes.bind("v_cache", v_cache, {"P", "S", "H", "Dv"});
  sizes.bind("out", out, {rows, "Hq", "Dv"});
  sizes.bind("lse", lse, {rows, "Hq"});
  if (sizes["H"] < 1 || sizes["Hq"] % sizes["H"] != 0)
    fail("q", "a multiple of the " + std::to_string(sizes["H"]) + " kv heads", std::to_string(sizes["Hq"]) + " heads");
  if (sizes["D"] < 1 || sizes["Dv"] < 1) fail("k_cache, v_cache", "a head dim of at least 1", "0");
  check_storage_dtype("q", q);
  for (const auto& [name, view] : {std::pair{"q", q}, {"k_cache", k_cache}, {"v_cache", v_cache}, {"out", out}}) {
    check_dtype(name, view, q.dtype);
    check_last_contiguous(name, view);
  }
  check_dtype("lse", lse, DType::f32);
  if (!sinks) return;
  sizes.bind("sinks", *sinks, {"Hq"});
  check_dtype("sinks", *sinks, DType::f32);
  check_contiguous("sinks", *sinks);
}

// All but the plan.
inline AttentionProblem attention_problem(const View& q, const View& k_cache, const View& v_cache,
                                          const OptionalView& sinks, const View& out, const View& lse,
                                          const AttentionOptions& options) {
  return {.dtype = q.dtype,
          .q = q.data,
          .q_row_stride = q.strides[0],
          .q_head_stride = q.strides[1],
          .k = k_cache.data,
          .v = v_cache.data,
          .k_layout = layer_layout(k_cache),
          .v_layout = layer_layout(v_cache),
          .T = q.shape[0],
          .Hq = q.shape[1],
          .H = k_cache.shape[2],
          .D = q.shape[2],
          .Dv = v_cache.shape[3],
          .interleaved = options.interleaved,
          .sinks = sinks ? sinks->as<const float>() : nullptr,
          .out = out.data,
          .out_row_stride = out.strides[0],
          .out_head_stride = out.strides[1],
          .lse = lse.as<float>(),
          .lse_row_stride = lse.strides[0],
          .lse_head_stride = lse.strides[1],
          .scale = options.scale,
          .softcap = options.softcap,
          .window = options.window};
}

}  // namespace atk
