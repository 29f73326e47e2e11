#include <algorithm>
#include <vector>

#include "cpu/attention_args.h"
#include "cpu/ops.h"

namespace atk {
namespace {

// Block tables as a step plan: only row b sees the chunks of its own pages. Kept per thread, so that it allocates only
// when a larger problem comes.
struct Plan {
  std::vector<Item> items;
  std::vector<Entry> entries;
  std::vector<int32_t> pages, row_ptr, positions;

  void clear() {
    items.clear();
    entries.clear();
    pages.clear();
    positions.clear();
    row_ptr.assign(1, 0);
  }

  void add_row(int64_t row, int64_t length, const int32_t* table, int64_t table_stride, int64_t page_size,
               int64_t chunk) {
    const auto first_page = static_cast<int32_t>(pages.size());
    for (int64_t i = 0; i < ceil_div(length, page_size); ++i) pages.push_back(table[i * table_stride]);
    for (int64_t begin = 0; begin < length; begin += chunk) {
      const auto tokens = static_cast<int32_t>(std::min(chunk, length - begin));
      const auto entry = static_cast<int32_t>(entries.size());
      items.push_back({first_page + static_cast<int32_t>(page_of(begin, page_size)),
                       static_cast<int32_t>(offset_of(begin, page_size)), tokens, static_cast<int32_t>(begin), entry,
                       entry + 1});
      entries.push_back({static_cast<int32_t>(row), 0, tokens, 0, entry});
    }
    row_ptr.push_back(static_cast<int32_t>(entries.size()));
    positions.push_back(static_cast<int32_t>(length - 1));
  }
};

void check_tables(const PagedAttention& a) {
  const int64_t M = a.block_tables.shape[1], P = a.k_cache.shape[0], S = a.k_cache.shape[1];
  check_values("seq_lens", a.seq_lens, 0, M * S + 1);
  const int32_t* const lengths = a.seq_lens.as<const int32_t>();
  for (int64_t row = 0; row < a.seq_lens.shape[0]; ++row) {
    View used = a.block_tables;  // the pages of the row that its length reaches
    used.data = a.block_tables.as<int32_t>() + row * a.block_tables.strides[0];
    used.ndim = 1;
    used.shape[0] = ceil_div(lengths[row * a.seq_lens.strides[0]], S);
    used.strides[0] = a.block_tables.strides[1];
    check_values("block_tables[" + std::to_string(row) + "]", used, 0, P);
  }
}

}  // namespace

void paged_attention(const PagedAttention& a, const View& workspace) {
  const Sizes sizes = a.check();
  check_tables(a);

  thread_local Plan plan;
  plan.clear();
  const int64_t B = sizes["B"], page_size = sizes["S"];
  for (int64_t row = 0; row < B; ++row)
    plan.add_row(row, a.seq_lens.as<const int32_t>()[row * a.seq_lens.strides[0]],
                 a.block_tables.as<const int32_t>() + row * a.block_tables.strides[0], a.block_tables.strides[1],
                 page_size, a.chunk);

  static constexpr int32_t kNoShift = 0;
  AttentionProblem x = attention_problem(a);
  x.items = plan.items.data();
  x.pages = plan.pages.data();
  x.entries = plan.entries.data();
  x.row_ptr = plan.row_ptr.data();
  x.positions = plan.positions.data();
  x.shifts = &kNoShift;
  run_attention(x, static_cast<int64_t>(plan.items.size()), workspace);
}

int64_t paged_attention_workspace(int64_t max_blocks, int64_t page_size, int64_t chunk, int64_t rows, int64_t q_heads,
                                  int64_t kv_heads, int64_t v_head_dim) {
  if (chunk < 1) fail("chunk", "at least 1", std::to_string(chunk));
  return attention_workspace(rows * ceil_div(max_blocks * page_size, chunk), q_heads, kv_heads, v_head_dim);
}

}  // namespace atk
