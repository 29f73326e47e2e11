// A block's tile of rows: which they are, what they see, their queries, and the merge of its warps' results.
#pragma once

#include <cmath>

#include "common/dtype.h"
#include "common/rope.h"
#include "common/tiles.h"
#include "cuda/attention.h"
#include "cuda/ptx.h"

namespace atk::cuda {

constexpr int kWarps = 4;
constexpr int kAttendThreads = kWarps * kWarp;
constexpr float kLn2 = 0.6931471805599453f;

// The item of a tile: `length` tokens from place `offset` of `pages` on; rows [first, rows) of its entries x group.
struct Work {
  const int32_t* pages;
  int64_t entry_begin;
  int32_t offset, length, position, first, rows;
};

// The item that a tile belongs to: 128 places at a time, so that one look at memory does for 128 items and two for
// 16,384. `found` is the block's.
__device__ __forceinline__ int64_t item_of_tile(const AttentionJob& job, int64_t tile, int M, int64_t* found) {
  const auto begins = [&](int64_t i) { return first_tile(i, job.items[i].entry_begin, job.G, M) <= tile; };
  int64_t low = 0, high = job.num_items;
  while (high - low > 1) {
    const int64_t step = ceil_div(high - low, kAttendThreads), mine = low + threadIdx.x * step;
    if (holds_tile(mine, step, high, begins)) *found = mine;
    sync_block();
    low = *found;
    sync_block();  // all have read before the next step writes
    high = low + step < high ? low + step : high;
  }
  return low;
}

// rows <= first where there is nothing to do: tiles are counted by a bound.
__device__ __forceinline__ Work work_of(const AttentionJob& job, int64_t tile, int M, int64_t* found) {
  if (job.items) {
    const int64_t at = item_of_tile(job, tile, M, found);
    const Item& item = job.items[at];
    const auto first = static_cast<int32_t>((tile - first_tile(at, item.entry_begin, job.G, M)) * M);
    return {job.pages + item.page_begin,
            item.entry_begin,
            item.offset,
            item.length,
            item.position,
            first,
            (item.entry_end - item.entry_begin) * job.G};
  }
  const int64_t tiles = ceil_div(job.G, M), entry = tile / tiles;
  const int64_t row = entry / job.splits, split = entry - row * job.splits;
  const SplitRange splits = split_range(job.seq_lens[row], job.window, job.chunk);
  const auto begin = static_cast<int32_t>(split * job.chunk);
  const int64_t left = job.seq_lens[row] - begin;
  const auto length = static_cast<int32_t>(left < job.chunk ? left : job.chunk);
  const bool seen = split >= splits.first && split < splits.last;
  return {job.block_tables + row * job.table_stride,        entry,           begin, length, begin,
          static_cast<int32_t>((tile - entry * tiles) * M), seen ? job.G : 0};
}

// What one row of a tile sees of its item, and which query it is.
struct TileRow {
  int32_t entry, begin, end;  // entry counted from the item's first; a row that is not there has begin = end = 0
};

// What an entry says; paged: row b sees all of the chunk that its length and window leave.
__device__ __forceinline__ Entry entry_of(const AttentionJob& job, const Work& work, int64_t entry) {
  if (job.items) return job.entries[entry];
  return {static_cast<int32_t>(entry / job.splits), 0, work.length, 0, 0};
}

__device__ __forceinline__ TileRow tile_row(const AttentionJob& job, const Work& work, int index) {
  if (index >= work.rows) return {-1, 0, 0};
  const Entry entry = entry_of(job, work, work.entry_begin + index / job.G);
  TileRow row = {index / job.G, entry.begin, entry.end};
  if (job.window > 0) {
    const int64_t stands = job.items ? job.positions[entry.row] : job.seq_lens[entry.row] - 1;
    const int64_t shift = job.items ? job.shifts[entry.shift_index] : 0;
    const int64_t distance = stands - work.position - shift;  // of the item's first token
    const int64_t begin = distance - job.window + 1, end = distance + 1;
    row.begin = static_cast<int32_t>(begin > row.begin ? begin : row.begin);
    row.end = static_cast<int32_t>(end < row.end ? end : row.end);
  }
  if (row.begin >= row.end) row.begin = row.end = 0;
  return row;
}

// The queries of M rows to shared memory, [M][stride], turned back by their entry's shift; zeros beyond D and for rows
// that are not there. R(-shift) q meets the keys of a linked segment as q would meet R(shift) k.
template <class T, int BD>
__device__ __forceinline__ void load_queries(const AttentionJob& job, const Work& work, int head, int M, T* queries,
                                             int stride) {
  for (int i = threadIdx.x; i < M * BD; i += kAttendThreads) {
    const int row = i / BD, d = i % BD, index = work.first + row;
    T value = from_float<T>(0.0f);
    if (index < work.rows && d < job.D) {
      const Entry entry = entry_of(job, work, work.entry_begin + index / job.G);
      const T* const q = static_cast<const T*>(job.q) + entry.row * job.q_row_stride +
                         (static_cast<int64_t>(head) * job.G + index % job.G) * job.q_head_stride;
      value = q[d];
      if (job.cos && entry.shift_index > 0 && d < 2 * job.R) {
        const int64_t pair = job.interleaved ? d / 2 : d % job.R;
        const RopePair at = rope_pair(pair, job.R, job.interleaved);
        const int64_t angle = static_cast<int64_t>(entry.shift_index) * job.R + pair;
        float a = to_float(q[at.a]), b = to_float(q[at.b]);
        rotate(a, b, job.cos[angle], -job.sin[angle]);
        value = from_float<T>(d == at.a ? a : b);
      }
    }
    queries[row * stride + d] = value;
  }
}

// Where a warp's results stand in shared memory until all warps have theirs: outputs that are not yet divided, maxima
// (base 2) and sums of weights.
template <int M, int BDV>
struct WarpResults {
  static constexpr int kStride = BDV + 8;  // so that rows of a fragment fall on different banks
  float out[kWarps][M][kStride];
  float max[kWarps][M], sum[kWarps][M];
};

// The row's LSE. Makes factors of its maxima: its output is sum_w max[w][row] out[w][row].
template <int M, int BDV>
__device__ __forceinline__ float merge_warps(WarpResults<M, BDV>& results, int row) {
  float high = -INFINITY, total = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) high = fmaxf(high, results.max[w][row]);
  const float safe = high == -INFINITY ? 0.0f : high;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += exp2_fast(results.max[w][row] - safe) * results.sum[w][row];
#pragma unroll
  for (int w = 0; w < kWarps; ++w)
    results.max[w][row] = total == 0.0f ? 0.0f : exp2_fast(results.max[w][row] - safe) / total;
  return total == 0.0f ? -INFINITY : (safe + log2f(total)) * kLn2;
}

// Writes the partials of the rows whose entry is `only_entry` (-1: of all). Whether a thread met a value that is not
// finite.
template <int M, int BDV>
__device__ __forceinline__ bool store_partials(const AttentionJob& job, const Work& work, int head, const TileRow* rows,
                                               WarpResults<M, BDV>& results, int only_entry) {
  const auto mine = [&](int row) { return rows[row].entry >= 0 && (only_entry < 0 || rows[row].entry == only_entry); };
  const int64_t base = (head * job.num_entries + work.entry_begin) * job.G + work.first;
  if (const int row = threadIdx.x; row < M) {
    const float lse = merge_warps(results, row);
    if (mine(row)) job.part_lse[base + row] = lse;
  }
  sync_block();
  bool nonfinite = false;
  for (int i = threadIdx.x; i < M * BDV; i += kAttendThreads) {
    const int row = i / BDV, d = i % BDV;
    if (d >= job.Dv || !mine(row)) continue;
    float out = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) out += results.max[w][row] * results.out[w][row][d];
    job.part_out[(base + row) * job.Dv + d] = out;
    nonfinite |= !(fabsf(out) < INFINITY);
  }
  return nonfinite;
}

}  // namespace atk::cuda
