#include "cpu/attention_args.h"
#include "cpu/ops.h"

namespace atk {

// The plan's values were checked when it was made (asyncthink_kernels/plan.py); its sizes are compared here.
void tree_attention(const TreeAttention& a, const View& workspace) {
  const Sizes sizes = a.check();
  AttentionProblem x = attention_problem(a);
  x.items = a.items.as<const Item>();
  x.pages = a.pages.as<const int32_t>();
  x.entries = a.entries.as<const Entry>();
  x.row_ptr = a.row_ptr.as<const int32_t>();
  x.positions = a.positions.as<const int32_t>();
  x.shifts = a.shifts.as<const int32_t>();
  if (a.cos) {
    x.cos = a.cos->as<const float>();
    x.sin = a.sin->as<const float>();
    x.R = sizes["R"];
  }
  run_attention(x, sizes["I"], workspace);
}

int64_t tree_attention_workspace(int64_t partials, int64_t q_heads, int64_t kv_heads, int64_t v_head_dim) {
  return attention_workspace(partials, q_heads, kv_heads, v_head_dim);
}

}  // namespace atk
