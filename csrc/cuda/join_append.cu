#include "cuda/join_append.cuh"

#include <algorithm>

#include "common/layout.h"
#include "cuda/launch.h"
#include "cuda/ops.h"
#include "cuda/words.h"

namespace atk::cuda {
namespace {

template <class T, int n>
void run(const JoinAppend& a, const Sizes& sizes, cudaStream_t stream) {
  const auto rows = [](const View& caches) { return JoinRows{caches.data, caches.strides[0], group_layout(caches)}; };
  JoinJob job = {.k = rows(a.k_caches),
                 .v = rows(a.v_caches),
                 .src_slots = a.src_slots.as<const int64_t>(),
                 .dst_slots = a.dst_slots.as<const int64_t>(),
                 .src_stride = a.src_slots.strides[0],
                 .dst_stride = a.dst_slots.strides[0],
                 .num_slots = sizes["P"] * sizes["S"],
                 .tokens = sizes["N"],
                 .heads = sizes["H"],
                 .cos = a.cos.as<const float>(),
                 .sin = a.sin.as<const float>(),
                 .cos_stride = a.cos.strides[0],
                 .sin_stride = a.sin.strides[0],
                 .D = sizes["D"],
                 .R = sizes["R"],
                 .k_units = static_cast<uint32_t>(rope_units(sizes["D"], sizes["R"], n)),
                 .v_units = static_cast<uint32_t>(sizes["Dv"] / n),
                 .block_rows = 0};
  job.block_rows = std::max(1u, kJoinPieces / (job.k_units + job.v_units));
  const dim3 blocks(static_cast<unsigned>(ceil_div(job.tokens * job.heads, job.block_rows)),
                    static_cast<unsigned>(sizes["L"]));
  const auto kernel = a.interleaved ? join_rows<T, n, true> : join_rows<T, n, false>;
  launch("join_append", kernel, blocks, kJoinThreads, 0, stream, job);
}

template <class T>
void run_words(const JoinAppend& a, const Sizes& sizes, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  const int64_t turned = sizes["R"] * static_cast<int64_t>(sizeof(T));  // words must not straddle what is turned
  if (word_bytes({&a.k_caches, &a.v_caches}, turned) == 16) return run<T, kWide>(a, sizes, stream);
  run<T, 1>(a, sizes, stream);
}

}  // namespace

void join_append(const JoinAppend& a, cudaStream_t stream) {
  const Sizes sizes = a.check();
  if (sizes["L"] * sizes["N"] * sizes["H"] * (sizes["D"] + sizes["Dv"]) == 0) return;
  switch (a.k_caches.dtype) {
    case DType::f32:
      return run_words<float>(a, sizes, stream);
    case DType::bf16:
      return run_words<bf16>(a, sizes, stream);
    default:
      return run_words<f16>(a, sizes, stream);
  }
}

}  // namespace atk::cuda
