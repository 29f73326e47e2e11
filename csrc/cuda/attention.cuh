// The attention kernel of tree_attention and paged_attention: a block takes one tile of rows and one kv head against a
// whole item. The limit is the bytes of the K and V that items name, (D + Dv) H itemsize for each token, over the
// memory's bandwidth; tiles beyond an item's first find them in L2.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common/check.h"
#include "cuda/attend_float.cuh"
#include "cuda/attend_half.cuh"
#include "cuda/launch.h"

namespace atk::cuda {

// R fragments of 16 rows (float32: one) of heads of up to BD and BDV dims.
template <class Element, int BD, int BDV, int R>
struct AttendShape {
  using T = Element;
  static constexpr int kDims = BD;
  static constexpr bool kFloat = std::is_same_v<T, float>;
  using Tile = std::conditional_t<kFloat, FloatTile<BD, BDV>, HalfTile<T, BD, BDV, R>>;
  using Ring = typename Tile::Ring;
  static constexpr int M = Tile::M;
  using Results = WarpResults<M, BDV>;

  struct alignas(128) Fixed {
    alignas(16) T queries[M][Tile::kQ];
    int64_t item;  // for the search
    TileRow rows[M];
    float weights[kFloat ? kWarps : 1][M][Tile::kTokens + 1];  // only float32 uses them
  };

  static constexpr size_t kStageBytes = kWarps * sizeof(Ring);

  // Results of the warps take the place of the rings.
  static constexpr size_t shared_bytes(int stages) {
    return sizeof(Fixed) + std::max(stages * kStageBytes, sizeof(Results));
  }
};

template <class Shape>
__global__ void __launch_bounds__(kAttendThreads, 2) attend_item(const __grid_constant__ AttentionJob job) {
  using T = typename Shape::T;
  constexpr int M = Shape::M;
  auto& fixed = *reinterpret_cast<typename Shape::Fixed*>(shared_memory());
  char* const rest = shared_memory() + sizeof(typename Shape::Fixed);
  auto* const ring = reinterpret_cast<typename Shape::Ring*>(rest) + threadIdx.x / kWarp * job.stages;
  auto& results = *reinterpret_cast<typename Shape::Results*>(rest);

  const int head = blockIdx.x % job.H;  // heads run fastest: they share cache lines
  const Work work = work_of(job, blockIdx.x / job.H, M, &fixed.item);
  if (work.first >= work.rows) return;
  if (const int row = threadIdx.x; row < M) {
    fixed.rows[row] = tile_row(job, work, work.first + row);
    if (job.items && head == 0 && work.first + row < work.rows) {
      const int64_t entry = work.entry_begin + (work.first + row) / job.G;
      job.entry_of[job.entries[entry].partial] = static_cast<int32_t>(entry);
    }
  }
  load_queries<T, Shape::kDims>(job, work, head, M, &fixed.queries[0][0], Shape::Tile::kQ);
  sync_block();

  // One pass for all entries. If some row sees a NaN or an infinity, it must not reach rows that do not see it (0 *
  // inf): then each entry gets a pass over its own tokens only. For rows without a NaN that computes the same again.
  const int left = work.rows - work.first, live = left < M ? left : M;
  const int first_entry = work.first / job.G, last_entry = (work.first + live - 1) / job.G;
  for (int only_entry = -1; only_entry <= last_entry; only_entry = only_entry < 0 ? first_entry : only_entry + 1) {
    int low = INT32_MAX, high = 0;
    for (int row = 0; row < live; ++row) {
      const TileRow& each = fixed.rows[row];
      if (each.begin >= each.end || (only_entry >= 0 && each.entry != only_entry)) continue;
      low = each.begin < low ? each.begin : low, high = each.end > high ? each.end : high;
    }
    low = low < high ? low : high;
    const auto run = [&](auto& tile) {
      for_slices(ring, job, work, head, low, high, [&](const auto& stage, int first) { tile.take(stage, first); });
      sync_block();
      tile.finish(results);
    };
    if constexpr (Shape::kFloat) {
      typename Shape::Tile tile(job, &fixed.queries[0][0], fixed.rows, only_entry, live, fixed.weights);
      run(tile);
    } else {
      typename Shape::Tile tile(job, &fixed.queries[0][0], fixed.rows, only_entry);
      run(tile);
    }
    sync_block();
    const bool nonfinite = any_of_block(store_partials(job, work, head, fixed.rows, results, only_entry));
    if (only_entry < 0 && !nonfinite) return;
  }
}

// Stages of the ring and bytes of shared memory that a block gets on a chip with `limit` bytes for a block.
template <class Shape>
SharedPlan shared_plan(int64_t limit) {
  const auto stages = ring_stages(sizeof(typename Shape::Fixed), Shape::kStageBytes, limit, kMaxStages);
  return {static_cast<int>(stages), static_cast<int64_t>(Shape::shared_bytes(static_cast<int>(stages)))};
}

template <class Shape>
void attend_with(AttentionLaunch x, cudaStream_t stream) {
  AttentionJob& job = x.job;
  const int64_t limit = shared_limit(x.op);
  const SharedPlan plan = shared_plan<Shape>(limit);
  if (plan.stages == 0 || plan.bytes > limit)
    fail("k_cache, v_cache", "head dims whose tiles fit the " + std::to_string(limit) + " bytes of shared memory here",
         std::to_string(job.D) + " and " + std::to_string(job.Dv));
  job.stages = plan.stages;
  const int64_t tiles =
      job.items ? tile_bound(x.work, job.num_entries, job.G, Shape::M) : x.work * ceil_div(job.G, Shape::M);
  const int64_t blocks = tiles * job.H;
  if (blocks >= INT32_MAX) fail("items, entries", "fewer than 2^31 tiles", std::to_string(blocks));
  launch(x.op, attend_item<Shape>, dim3(static_cast<unsigned>(blocks)), kAttendThreads, plan.bytes, stream, job);
}

// Calls f with the shape for these sizes: the one table of head dims; narrower heads run in the next wider line, their
// last dims zeros. Two fragments of rows share every K and V that is loaded, where `rows` see an item in the mean and
// registers allow; more would leave none for the outputs. Where 16 rows are enough one fragment does the same work with
// half the registers.
template <class T, class F>
auto with_shape(int64_t D, int64_t Dv, double rows, const F& f) {
  constexpr int kMore = std::is_same_v<T, float> ? 1 : 2;
  const bool more = rows > kFragment;
  if (D <= 64 && Dv <= 64) return more ? f(AttendShape<T, 64, 64, kMore>{}) : f(AttendShape<T, 64, 64, 1>{});
  if (D <= 128 && Dv <= 128) return more ? f(AttendShape<T, 128, 128, kMore>{}) : f(AttendShape<T, 128, 128, 1>{});
  if (D <= 192 && Dv <= 128) return f(AttendShape<T, 192, 128, 1>{});
  return f(AttendShape<T, 256, 256, 1>{});
}

template <class T>
void attend_dims(const AttentionLaunch& x, cudaStream_t stream) {
  with_shape<T>(x.job.D, x.job.Dv, x.rows, [&]<class Shape>(Shape) { attend_with<Shape>(x, stream); });
}

template <class T>
SharedPlan shared_dims(int64_t D, int64_t Dv, double rows, int64_t limit) {
  return with_shape<T>(D, Dv, rows, [&]<class Shape>(Shape) { return shared_plan<Shape>(limit); });
}

}  // namespace atk::cuda
