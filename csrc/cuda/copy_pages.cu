#include "cuda/copy_pages.cuh"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/ops.h"
#include "cuda/words.h"

namespace atk::cuda {
namespace {

PageRows rows_of(const View& caches, int64_t word) {
  const auto words = [&](int64_t elements) { return elements * element_size(caches.dtype) / word; };
  const int64_t S = caches.shape[2], H = caches.shape[3], D = caches.shape[4];
  PageRows rows = {.data = caches.data,
                   .layer_stride = words(caches.strides[0]),
                   .page_stride = words(caches.strides[1]),
                   .slot_stride = words(caches.strides[2]),
                   .head_stride = words(caches.strides[3]),
                   .slots = S,
                   .heads = H,
                   .row_words = static_cast<uint32_t>(words(D))};
  const bool dense = (H == 1 || caches.strides[3] == D) && (S == 1 || caches.strides[2] == H * D);
  if (dense) rows.slots = rows.heads = 1, rows.row_words = static_cast<uint32_t>(words(S * H * D));
  return rows;
}

unsigned blocks_for(const PageRows& rows, int64_t pages) {
  if (rows.row_words == 0) return 0;
  return static_cast<unsigned>(ceil_div(pages * rows.slots * rows.heads, std::max(1u, kCopyWords / rows.row_words)));
}

}  // namespace

void copy_pages(const CopyPages& a, cudaStream_t stream) {
  const Sizes sizes = a.check();
  if (sizes["L"] * sizes["n"] * sizes["S"] * sizes["H"] * std::max(sizes["D"], sizes["Dv"]) == 0) return;
  const int64_t word = word_bytes({&a.k_caches, &a.v_caches});
  const CopyJob job = {.rows = {rows_of(a.k_caches, word), rows_of(a.v_caches, word)},
                       .src = a.src.as<const int64_t>(),
                       .dst = a.dst.as<const int64_t>(),
                       .src_stride = a.src.strides[0],
                       .dst_stride = a.dst.strides[0],
                       .num_pages = sizes["P"],
                       .pages = sizes["n"]};
  const unsigned blocks = std::max(blocks_for(job.rows[0], job.pages), blocks_for(job.rows[1], job.pages));
  with_word(word, [&]<class Word>(Word) {
    launch("copy_pages", copy_rows<Word>, dim3(blocks, static_cast<unsigned>(sizes["L"]), 2), kCopyThreads, 0, stream,
           job);
  });
}

}  // namespace atk::cuda
