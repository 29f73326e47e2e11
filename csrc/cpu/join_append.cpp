#include <cstring>

#include "cpu/cache_args.h"
#include "cpu/ops.h"
#include "cpu/rows.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kTokensPerDraw = 8;

void check(const JoinAppend& a, const Sizes& sizes) {
  check_storage_dtype("k_caches", a.k_caches);
  check_dtype("v_caches", a.v_caches, a.k_caches.dtype);
  check_last_contiguous("k_caches", a.k_caches);
  check_last_contiguous("v_caches", a.v_caches);
  for (auto [name, view] : {std::pair{"cos", &a.cos}, {"sin", &a.sin}}) {
    check_dtype(name, *view, DType::f32);
    check_last_contiguous(name, *view);
  }
  if (2 * sizes["R"] > sizes["D"])
    fail("cos", "R <= D / 2 = " + std::to_string(sizes["D"] / 2), std::to_string(sizes["R"]));
  for (auto [name, view] : {std::pair{"src_slots", &a.src_slots}, {"dst_slots", &a.dst_slots}}) {
    check_dtype(name, *view, DType::i64);
    check_values(name, *view, 0, sizes["P"] * sizes["S"]);
  }
  check_distinct("dst_slots", a.dst_slots, sizes["P"] * sizes["S"], &a.src_slots);
}

}  // namespace

void join_append(const JoinAppend& a) {
  Sizes sizes;
  sizes.bind("k_caches", a.k_caches, {"L", "P", "S", "H", "D"});
  sizes.bind("v_caches", a.v_caches, {"L", "P", "S", "H", "Dv"});
  sizes.bind("src_slots", a.src_slots, {"N"});
  sizes.bind("dst_slots", a.dst_slots, {"N"});
  sizes.bind("cos", a.cos, {"L", "R"});
  sizes.bind("sin", a.sin, {"L", "R"});
  check(a, sizes);

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
