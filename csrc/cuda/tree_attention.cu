#include <algorithm>

#include "cuda/attention.h"

namespace atk::cuda {

void tree_attention(const TreeAttention& a, const Partials& partials, cudaStream_t stream) {
  const Sizes sizes = a.check();
  const int64_t items = sizes["I"], entries = sizes["E"];
  AttentionJob job = attention_job(a, partials, entries);
  check_dtype("entry_of", partials.entry_of, DType::i32);
  check_size("entry_of", "E = " + std::to_string(entries) + " elements", partials.entry_of.shape[0], entries);
  if (sizes["T"] == 0) return;
  job.items = a.items.as<const Item>();
  job.pages = a.pages.as<const int32_t>();
  job.entries = a.entries.as<const Entry>();
  job.row_ptr = a.row_ptr.as<const int32_t>();
  job.positions = a.positions.as<const int32_t>();
  job.shifts = a.shifts.as<const int32_t>();
  job.cos = a.cos ? a.cos->as<const float>() : nullptr;
  job.sin = a.sin ? a.sin->as<const float>() : nullptr;
  job.R = a.cos ? static_cast<int>(sizes["R"]) : 0;
  job.num_items = items;
  job.entry_of = partials.entry_of.as<int32_t>();
  const double rows = static_cast<double>(entries) * job.G / static_cast<double>(std::max<int64_t>(items, 1));
  if (items > 0) attend_items({job, a.q.dtype, items, rows, "tree_attention"}, stream);
  ReduceJob reduce = reduce_job(a, partials, entries);
  reduce.entry_of = partials.entry_of.as<const int32_t>();
  reduce.row_ptr = job.row_ptr;
  reduce_partials("tree_attention", a.q.dtype, reduce, stream);
}

}  // namespace atk::cuda
