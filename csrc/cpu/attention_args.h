// What tree_attention and paged_attention fill in alike.
#pragma once

#include "common/attention.h"
#include "common/layout.h"
#include "cpu/attention.h"

namespace atk {

// All but the plan.
inline AttentionProblem attention_problem(const Attention& a) {
  return {.dtype = a.q.dtype,
          .q = a.q.data,
          .q_row_stride = a.q.strides[0],
          .q_head_stride = a.q.strides[1],
          .k = a.k_cache.data,
          .v = a.v_cache.data,
          .k_layout = layer_layout(a.k_cache),
          .v_layout = layer_layout(a.v_cache),
          .T = a.q.shape[0],
          .Hq = a.q.shape[1],
          .H = a.k_cache.shape[2],
          .D = a.q.shape[2],
          .Dv = a.v_cache.shape[3],
          .interleaved = a.options.interleaved,
          .sinks = a.sinks ? a.sinks->as<const float>() : nullptr,
          .out = a.out.data,
          .out_row_stride = a.out.strides[0],
          .out_head_stride = a.out.strides[1],
          .lse = a.lse.as<float>(),
          .lse_row_stride = a.lse.strides[0],
          .lse_head_stride = a.lse.strides[1],
          .scale = a.options.scale,
          .softcap = a.options.softcap,
          .window = a.options.window};
}

}  // namespace atk
