#include <algorithm>

#include "cuda/append_kv.cuh"
#include "cuda/ops.h"

namespace atk::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 2048;  // the loop in the kernel takes what is left

// The widest word that divides every address and stride.
int64_t word_bytes(const AppendKV& a) {
  uint64_t bits = 16;
  for (const View* view : {&a.k, &a.v, &a.k_cache, &a.v_cache}) {
    bits |= reinterpret_cast<uintptr_t>(view->data) | view->shape[view->ndim - 1] * element_size(view->dtype);
    for (int axis = 0; axis < view->ndim - 1; ++axis) bits |= view->strides[axis] * element_size(view->dtype);
  }
  return static_cast<int64_t>(bits & -bits);  // the lowest bit set: 16, 8, 4 or 2
}

AppendRows rows_of(const View& src, const View& cache, int64_t word) {
  const auto words = [&](int64_t elements) { return elements * element_size(src.dtype) / word; };
  return {.src = src.data,
          .src_token_stride = words(src.strides[0]),
          .src_head_stride = words(src.strides[1]),
          .cache = cache.data,
          .layout = {cache.shape[1], words(cache.strides[0]), words(cache.strides[1]), words(cache.strides[2])},
          .row_words = words(src.shape[2])};
}

template <class Word>
void launch(const AppendJob& job, cudaStream_t stream) {
  const int64_t words = job.tokens * job.heads * std::max(job.rows[0].row_words, job.rows[1].row_words);
  const auto blocks = static_cast<unsigned>(std::min(ceil_div(words, kThreads), kMaxBlocks));
  append_rows<Word><<<dim3(blocks, 2), kThreads, 0, stream>>>(job);
}

}  // namespace

void append_kv(const AppendKV& a, cudaStream_t stream) {
  const Sizes sizes = a.check();
  if (sizes["T"] * sizes["H"] * std::max(sizes["D"], sizes["Dv"]) == 0) return;
  const int64_t word = word_bytes(a);
  const AppendJob job = {.rows = {rows_of(a.k, a.k_cache, word), rows_of(a.v, a.v_cache, word)},
                         .slots = a.slots.as<const int64_t>(),
                         .slots_stride = a.slots.strides[0],
                         .num_slots = sizes["P"] * sizes["S"],
                         .tokens = sizes["T"],
                         .heads = sizes["H"]};
  switch (word) {
    case 16:
      launch<uint4>(job, stream);
      break;
    case 8:
      launch<uint2>(job, stream);
      break;
    case 4:
      launch<uint32_t>(job, stream);
      break;
    default:
      launch<uint16_t>(job, stream);
  }
  check_launch("append_kv");
}

}  // namespace atk::cuda
