#include <vector>

#include "cpu/attention_args.h"
#include "cpu/ops.h"

namespace atk {
namespace {

// `value`, the field of a row of `items` or `entries`, lies in [begin, end).
void check_field(const char* tensor, int64_t index, const char* field, int64_t value, int64_t begin, int64_t end) {
  if (value < begin || value >= end)
    fail(std::string(tensor) + "[" + std::to_string(index) + "] " + field,
         "a value in [" + std::to_string(begin) + ", " + std::to_string(end) + ")", std::to_string(value));
}

// Returns the number of entries in use: what stands behind them belongs to nobody.
int64_t check_row_ptr(const AttentionProblem& x, int64_t capacity) {
  if (x.row_ptr[0] != 0) fail("row_ptr[0]", "0", std::to_string(x.row_ptr[0]));
  for (int64_t row = 0; row < x.T; ++row)
    if (x.partials_of(row) < 0) fail("row_ptr", "values that never fall", "a fall after row " + std::to_string(row));
  if (x.row_ptr[x.T] > capacity)
    fail("row_ptr[T]", "at most E = " + std::to_string(capacity), std::to_string(x.row_ptr[x.T]));
  return x.row_ptr[x.T];
}

// `next_entry` is where the item before ended.
void check_item(const AttentionProblem& x, int64_t i, int64_t num_pages, int64_t cache_pages, int64_t next_entry,
                int64_t num_entries) {
  const Item& item = x.items[i];
  const int64_t page_size = x.k_layout.page_size;
  check_field("items", i, "offset", item.offset, 0, page_size);
  check_field("items", i, "length", item.length, 0, cache_pages * page_size + 1);
  check_field("items", i, "page_begin", item.page_begin, 0, num_pages - item_pages(item, page_size) + 1);
  check_field("items", i, "entry_begin", item.entry_begin, next_entry, next_entry + 1);
  check_field("items", i, "entry_end", item.entry_end, next_entry, num_entries + 1);
  for (int64_t page = item.page_begin; page < item.page_begin + item_pages(item, page_size); ++page)
    check_field("pages", page, "of an item", x.pages[page], 0, cache_pages);
}

// Every entry in use stands in one item and has a partial of its own: then every partial that is reduced was written.
void check_plan(const AttentionProblem& x, const TreeAttention& a) {
  const int64_t num_shifts = a.shifts.shape[0];
  const int64_t num_entries = check_row_ptr(x, a.entries.shape[0]);
  if (num_shifts < 1 || x.shifts[0] != 0) fail("shifts[0]", "0", num_shifts < 1 ? "nothing" : "another value");
  thread_local std::vector<char> taken;
  taken.assign(num_entries, 0);
  int64_t e = 0;
  for (int64_t i = 0; i < a.items.shape[0]; ++i) {
    check_item(x, i, a.pages.shape[0], a.k_cache.shape[0], e, num_entries);
    for (; e < x.items[i].entry_end; ++e) {
      const Entry& entry = x.entries[e];
      check_field("entries", e, "row", entry.row, 0, x.T);
      check_field("entries", e, "end", entry.end, 0, int64_t{x.items[i].length} + 1);
      check_field("entries", e, "begin", entry.begin, 0, int64_t{entry.end} + 1);
      check_field("entries", e, "shift_index", entry.shift_index, 0, num_shifts);
      check_field("entries", e, "partial", entry.partial, x.row_ptr[entry.row], x.row_ptr[entry.row + 1]);
      if (taken[entry.partial]++)
        fail("entries[" + std::to_string(e) + "] partial", "a number of its own", std::to_string(entry.partial));
    }
  }
  if (e != num_entries)
    fail("items", "to cover the " + std::to_string(num_entries) + " entries up to row_ptr[T]", std::to_string(e));
}

}  // namespace

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
  check_plan(x, a);
  run_attention(x, sizes["I"], workspace);
}

int64_t tree_attention_workspace(int64_t partials, int64_t q_heads, int64_t kv_heads, int64_t v_head_dim) {
  return attention_workspace(partials, q_heads, kv_heads, v_head_dim);
}

}  // namespace atk
