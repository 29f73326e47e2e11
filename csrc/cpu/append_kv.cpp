#include <algorithm>
#include <cstring>

#include "cpu/cache_args.h"
#include "cpu/ops.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kBytesPerDraw = 64 << 10;  // less is copied faster than a thread wakes

}  // namespace

void append_kv(const AppendKV& a) {
  const Sizes sizes = a.check();
  check_values("slots", a.slots, kNoSlot, sizes["P"] * sizes["S"]);
  check_distinct("slots", a.slots, sizes["P"] * sizes["S"]);

  const int64_t H = sizes["H"];
  const CacheLayout k_layout = layer_layout(a.k_cache), v_layout = layer_layout(a.v_cache);
  const int64_t k_bytes = row_bytes(a.k), v_bytes = row_bytes(a.v);
  const auto copy_token = [&](int64_t t) {
    const int64_t slot = a.slots.as<const int64_t>()[t * a.slots.strides[0]];
    if (slot == kNoSlot) return;
    for (int64_t h = 0; h < H; ++h) {
      std::memcpy(at(a.k_cache, k_layout.row(slot, h)), at(a.k, t * a.k.strides[0] + h * a.k.strides[1]), k_bytes);
      std::memcpy(at(a.v_cache, v_layout.row(slot, h)), at(a.v, t * a.v.strides[0] + h * a.v.strides[1]), v_bytes);
    }
  };
  const int64_t token_bytes = std::max<int64_t>(H * (k_bytes + v_bytes), 1);
  parallel_for(sizes["T"], ceil_div(kBytesPerDraw, token_bytes), copy_token);
}

}  // namespace atk
