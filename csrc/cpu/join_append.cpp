#include <cstring>

#include "cpu/cache_args.h"
#include "cpu/ops.h"
#include "cpu/rows.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kTokensPerDraw = 8;

void check_slots(const JoinAppend& a, int64_t num_slots) {
  check_values("src_slots", a.src_slots, 0, num_slots);
  check_values("dst_slots", a.dst_slots, 0, num_slots);
  check_distinct("dst_slots", a.dst_slots, num_slots, &a.src_slots);
}

}  // namespace

void join_append(const JoinAppend& a) {
  const Sizes sizes = a.check();
  check_slots(a, sizes["P"] * sizes["S"]);

  const RowKernels::Typed& kernels = row_kernels().of(a.k_caches.dtype);
  const auto rotate = a.interleaved ? kernels.rotate_interleaved : kernels.rotate_half_split;
  const CacheLayout k_layout = group_layout(a.k_caches), v_layout = group_layout(a.v_caches);
  const int64_t N = sizes["N"], H = sizes["H"], D = sizes["D"], R = sizes["R"], v_bytes = row_bytes(a.v_caches);

  parallel_for(sizes["L"] * N, kTokensPerDraw, [&](int64_t work) {
    const int64_t layer = work / N, t = work % N;
    const int64_t src = a.src_slots.as<const int64_t>()[t * a.src_slots.strides[0]];
    const int64_t dst = a.dst_slots.as<const int64_t>()[t * a.dst_slots.strides[0]];
    const float* cos = a.cos.as<const float>() + layer * a.cos.strides[0];
    const float* sin = a.sin.as<const float>() + layer * a.sin.strides[0];
    const int64_t k_base = layer * a.k_caches.strides[0], v_base = layer * a.v_caches.strides[0];
    for (int64_t h = 0; h < H; ++h) {
      rotate(at(a.k_caches, k_base + k_layout.row(dst, h)), at(a.k_caches, k_base + k_layout.row(src, h)), D, cos, sin,
             R);
      std::memcpy(at(a.v_caches, v_base + v_layout.row(dst, h)), at(a.v_caches, v_base + v_layout.row(src, h)),
                  v_bytes);
    }
  });
}

}  // namespace atk
