#include <cstring>

#include "cpu/cache_args.h"
#include "cpu/ops.h"
#include "cpu/threads.h"

namespace atk {
namespace {

// One layer's page, row by row: the strides between slots and heads are free.
void copy_page(const View& caches, int64_t layer, int64_t src, int64_t dst) {
  const int64_t bytes = row_bytes(caches), base = layer * caches.strides[0];
  for (int64_t slot = 0; slot < caches.shape[2]; ++slot)
    for (int64_t head = 0; head < caches.shape[3]; ++head) {
      const int64_t in_page = base + slot * caches.strides[2] + head * caches.strides[3];
      std::memcpy(at(caches, in_page + dst * caches.strides[1]), at(caches, in_page + src * caches.strides[1]), bytes);
    }
}

}  // namespace

void copy_pages(const CopyPages& a) {
  const Sizes sizes = a.check();
  check_values("src", a.src, 0, sizes["P"]);
  check_values("dst", a.dst, 0, sizes["P"]);
  check_distinct("dst", a.dst, sizes["P"], &a.src);

  const int64_t n = sizes["n"];
  parallel_for(sizes["L"] * n, 1, [&](int64_t work) {
    const int64_t layer = work / n, i = work % n;
    const int64_t src = a.src.as<const int64_t>()[i * a.src.strides[0]];
    const int64_t dst = a.dst.as<const int64_t>()[i * a.dst.strides[0]];
    copy_page(a.k_caches, layer, src, dst);
    copy_page(a.v_caches, layer, src, dst);
  });
}

}  // namespace atk
