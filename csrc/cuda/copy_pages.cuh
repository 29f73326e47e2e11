// copy_pages on the device: K and V of all layers in one launch, as 16-byte words wherever sizes and addresses allow.
// The limit is 2 (D + Dv) H S n L itemsize bytes over the memory's bandwidth.
#pragma once

#include "common/tiles.h"
#include "cuda/ptx.h"

namespace atk::cuda {

constexpr unsigned kCopyThreads = 256;
constexpr unsigned kCopyWords = 4 * kCopyThreads;  // of a block

// K or V: pages of slots x heads rows of `row_words` words; strides in words. A dense page is one row.
struct PageRows {
  void* data;
  int64_t layer_stride, page_stride, slot_stride, head_stride, slots, heads;
  uint32_t row_words;
};

struct CopyJob {
  PageRows rows[2];  // K, V: blockIdx.z
  const int64_t *src, *dst;
  int64_t src_stride, dst_stride, num_pages, pages;
};

// A page outside the cache traps.
template <class Word>
__global__ void __launch_bounds__(kCopyThreads) copy_rows(const __grid_constant__ CopyJob job) {
  const PageRows& rows = job.rows[blockIdx.z];
  const uint32_t block_rows = rows.row_words < kCopyWords ? kCopyWords / rows.row_words : 1;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * block_rows, in_page = rows.slots * rows.heads;
  Word* const layer = static_cast<Word*>(rows.data) + blockIdx.y * rows.layer_stride;
  for (uint32_t i = threadIdx.x; i < block_rows * rows.row_words; i += kCopyThreads) {
    const RowPiece piece = row_piece(first_row, i, rows.row_words, in_page);  // a "token" is a page of the list here
    if (piece.token >= job.pages) return;
    const int64_t src = job.src[piece.token * job.src_stride], dst = job.dst[piece.token * job.dst_stride];
    if (src < 0 || src >= job.num_pages || dst < 0 || dst >= job.num_pages) trap();
    const int64_t slot = piece.head / rows.heads, head = piece.head - slot * rows.heads;
    const int64_t at = slot * rows.slot_stride + head * rows.head_stride + piece.unit;
    layer[dst * rows.page_stride + at] = layer[src * rows.page_stride + at];
  }
}

}  // namespace atk::cuda
