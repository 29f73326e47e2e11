#include "cpu/attention.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "common/check.h"
#include "cpu/threads.h"

namespace atk {
namespace {

// M rows of a unit: enough that packing a K/V tile is cheap beside its products, few enough that a unit's queries and
// outputs stay in the second-level cache, and that a prefill has units for all threads.
constexpr int64_t kUnitRows = 96;

constexpr int64_t kWorkspaceFloats = int64_t{4} << 20;  // of a pass, where one kv head needs no more

int64_t floats_per_head(int64_t partials, int64_t q_heads, int64_t kv_heads, int64_t v_head_dim) {
  return partials * (q_heads / kv_heads) * (v_head_dim + 1);
}

// How many kv heads' partials fit; 0 where not even one's do.
int64_t heads_that_fit(int64_t floats, int64_t per_head, int64_t kv_heads) {
  return per_head > 0 ? std::min(floats / per_head, kv_heads) : kv_heads;
}

// A thread's scratch: grows to the largest problem this thread has met.
void* thread_scratch(size_t bytes) {
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  thread_local std::unique_ptr<void, Free> block;
  thread_local size_t size = 0;
  if (bytes > size) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    block.reset();
    size = 0;
    block.reset(std::aligned_alloc(64, rounded));
    if (!block) throw std::bad_alloc();
    size = rounded;
  }
  return block.get();
}

// Few rows: memory is the limit. It is read fastest in long runs, and what the chip fetches beyond a run should be of
// use: so a unit takes neighbouring heads, whose rows of a token lie side by side (twice as fast in float32 with 8
// heads). Many rows: arithmetic is the limit, and one head's queries and outputs fill the cache.
int64_t heads_per_unit(const AttentionProblem& problem, int64_t rows, int64_t num_items) {
  constexpr int64_t kFewRows = 16, kRunBytes = 4096, kUnitsPerThread = 3;
  const int64_t head_bytes = std::max(problem.D, problem.Dv) * element_size(problem.dtype);
  const bool side_by_side =
      problem.k_layout.head_stride <= 2 * problem.D && problem.v_layout.head_stride <= 2 * problem.Dv;
  if (rows > kFewRows || !side_by_side) return 1;
  int64_t heads = std::clamp<int64_t>(kRunBytes / head_bytes, 1, problem.heads);
  while (heads > 1 && num_items * ceil_div(problem.heads, heads) < kUnitsPerThread * num_threads()) heads /= 2;
  return heads;
}

// In the plan's order, heads of an item together: their K/V rows are neighbours in memory.
void cut_units(const AttentionProblem& problem, int64_t num_items, std::vector<AttentionUnit>& units) {
  const auto most_entries = static_cast<int32_t>(std::max<int64_t>(1, kUnitRows / problem.group()));
  const auto end_head = static_cast<int32_t>(problem.first_head + problem.heads);
  units.clear();
  for (int32_t i = 0; i < num_items; ++i) {
    const Item& item = problem.items[i];
    const int32_t entries = std::min(most_entries, item.entry_end - item.entry_begin);
    const auto heads = static_cast<int32_t>(heads_per_unit(problem, entries * problem.group(), num_items));
    for (auto head = static_cast<int32_t>(problem.first_head); head < end_head; head += heads)
      for (int32_t begin = item.entry_begin; begin < item.entry_end; begin += entries)
        units.push_back({i, head, std::min(heads, end_head - head), begin, std::min(begin + entries, item.entry_end)});
  }
}

// Multiply-adds of a unit; packing its K and V counts as so many rows more.
int64_t work_of(const AttentionProblem& problem, const AttentionUnit& unit) {
  constexpr int64_t kPackingRows = 8;
  const int64_t rows = (unit.entry_end - unit.entry_begin) * problem.group() + kPackingRows;
  return rows * unit.heads * problem.items[unit.item].length * (problem.D + problem.Dv);
}

// Successive units to a thread, so that it knows what it will need next; still enough draws to balance the threads.
// Little work stays on the caller: done before the others wake, and where other programs hold the cores, waiting at the
// barrier for a thread that is not scheduled costs a time slice.
int64_t units_per_draw(const AttentionProblem& problem, const std::vector<AttentionUnit>& units) {
  constexpr int64_t kDrawsPerThread = 6, kMost = 8, kLittle = int64_t{1} << 22;
  const auto count = static_cast<int64_t>(units.size());
  int64_t work = 0;
  for (size_t i = 0; i < units.size() && work < kLittle; ++i) work += work_of(problem, units[i]);
  return work < kLittle ? std::max<int64_t>(count, 1)
                        : std::clamp<int64_t>(count / (kDrawsPerThread * num_threads()), 1, kMost);
}

void run_pass(const AttentionProblem& problem, int64_t num_items) {
  const AttentionKernels& kernels = attention_kernels();
  thread_local std::vector<AttentionUnit> units;
  cut_units(problem, num_items, units);
  AttentionUnit largest = {};
  for (const AttentionUnit& unit : units) {
    largest.heads = std::max(largest.heads, unit.heads);
    largest.entry_end = std::max(largest.entry_end, unit.entry_end - unit.entry_begin);
  }
  const size_t scratch = kernels.scratch_bytes(problem, largest);
  const auto count = static_cast<int64_t>(units.size());
  parallel_for(count, units_per_draw(problem, units), [&, units = units.data()](int64_t i) {
    kernels.attend(problem, units[i], i + 1 < count ? &units[i + 1] : nullptr, thread_scratch(scratch));
  });

  const auto needs_reduction = [&](int64_t row) { return problem.partials_of(row) != 1; };
  int64_t row = 0;
  while (row < problem.T && !needs_reduction(row)) ++row;
  if (row == problem.T) return;
  constexpr int64_t kRowsPerDraw = 16;
  parallel_for(problem.T * problem.heads, kRowsPerDraw, [&](int64_t i) {
    if (needs_reduction(i / problem.heads))
      kernels.reduce(problem, i / problem.heads, problem.first_head + i % problem.heads);
  });
}

}  // namespace

int64_t attention_workspace(int64_t partials, int64_t q_heads, int64_t kv_heads, int64_t v_head_dim) {
  if (kv_heads < 1) fail("kv_heads", "at least 1", std::to_string(kv_heads));
  const int64_t per_head = floats_per_head(partials, q_heads, kv_heads, v_head_dim);
  return per_head * std::max<int64_t>(1, heads_that_fit(kWorkspaceFloats, per_head, kv_heads));
}

void run_attention(AttentionProblem problem, int64_t num_items, const View& workspace) {
  const int64_t partials = problem.row_ptr[problem.T];
  const int64_t per_head = floats_per_head(partials, problem.Hq, problem.H, problem.Dv);
  check_dtype("workspace", workspace, DType::f32);
  check_contiguous("workspace", workspace);
  const int64_t floats = workspace.ndim == 1 ? workspace.shape[0] : 0;
  const int64_t step = heads_that_fit(floats, per_head, problem.H);
  if (step < 1)
    fail("workspace", "at least " + std::to_string(per_head) + " floats in one dimension", std::to_string(floats));
  for (problem.first_head = 0; problem.first_head < problem.H; problem.first_head += step) {
    problem.heads = std::min(step, problem.H - problem.first_head);
    problem.partial_out = workspace.as<float>();
    problem.partial_lse = problem.partial_out + partials * problem.heads * problem.group() * problem.Dv;
    run_pass(problem, num_items);
  }
}

}  // namespace atk
