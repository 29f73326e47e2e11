#include "cuda/append_kv.cuh"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/ops.h"
#include "cuda/words.h"

namespace atk::cuda {
namespace {

AppendRows rows_of(const View& src, const View& cache, int64_t word) {
  const auto words = [&](int64_t elements) { return elements * element_size(src.dtype) / word; };
  return {.src = src.data,
          .src_token_stride = words(src.strides[0]),
          .src_head_stride = words(src.strides[1]),
          .cache = cache.data,
          .layout = {cache.shape[1], words(cache.strides[0]), words(cache.strides[1]), words(cache.strides[2])},
          .row_words = static_cast<uint32_t>(words(src.shape[2]))};
}

}  // namespace

void append_kv(const AppendKV& a, cudaStream_t stream) {
  const Sizes sizes = a.check();
  const int64_t rows = sizes["T"] * sizes["H"];
  if (rows * std::max(sizes["D"], sizes["Dv"]) == 0) return;
  const int64_t word = word_bytes({&a.k, &a.v, &a.k_cache, &a.v_cache});
  AppendJob job = {.rows = {rows_of(a.k, a.k_cache, word), rows_of(a.v, a.v_cache, word)},
                   .slots = a.slots.as<const int64_t>(),
                   .slots_stride = a.slots.strides[0],
                   .num_slots = sizes["P"] * sizes["S"],
                   .tokens = sizes["T"],
                   .heads = sizes["H"],
                   .block_rows = 0};
  job.block_rows = std::max(1u, kAppendWords / std::max(job.rows[0].row_words, job.rows[1].row_words));
  const dim3 blocks(static_cast<unsigned>(ceil_div(rows, job.block_rows)), 2);
  with_word(word,
            [&]<class Word>(Word) { launch("append_kv", append_rows<Word>, blocks, kAppendThreads, 0, stream, job); });
}

}  // namespace atk::cuda
