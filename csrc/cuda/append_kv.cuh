// append_kv on the device: one launch for K and V; a row moves as 16-byte words wherever sizes and addresses allow.
// The limit is 2 (D + Dv) H T itemsize bytes (read and written) over the memory's bandwidth.
#pragma once

#include "common/tiles.h"
#include "cuda/ptx.h"

namespace atk::cuda {

constexpr unsigned kAppendThreads = 256;
constexpr unsigned kAppendWords = 4 * kAppendThreads;  // that a block moves: four loads under way for each thread

// K or V: rows [T, H] of `row_words` words to the cache [P, S, H]. Strides are in words.
struct AppendRows {
  const void* src;
  int64_t src_token_stride, src_head_stride;
  void* cache;
  CacheLayout layout;
  uint32_t row_words;
};

struct AppendJob {
  AppendRows rows[2];  // K, V: blockIdx.y
  const int64_t* slots;
  int64_t slots_stride, num_slots, tokens, heads;
  uint32_t block_rows;
};

// Neighbouring threads take neighbouring words of a row, then heads, then tokens, so that loads and stores coalesce.
// kNoSlot is skipped; another slot outside the cache traps: the host cannot see it without a sync.
template <class Word>
__global__ void __launch_bounds__(kAppendThreads) append_rows(const __grid_constant__ AppendJob job) {
  const AppendRows& rows = job.rows[blockIdx.y];
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * job.block_rows;
  const uint32_t words = job.block_rows * rows.row_words;
  for (uint32_t i = threadIdx.x; i < words; i += kAppendThreads) {
    const RowPiece piece = row_piece(first_row, i, rows.row_words, job.heads);
    if (piece.token >= job.tokens) return;
    const int64_t slot = job.slots[piece.token * job.slots_stride];
    if (slot == kNoSlot) continue;
    if (slot < 0 || slot >= job.num_slots) trap();
    const int64_t from = piece.token * rows.src_token_stride + piece.head * rows.src_head_stride + piece.unit;
    static_cast<Word*>(rows.cache)[rows.layout.row(slot, piece.head) + piece.unit] =
        static_cast<const Word*>(rows.src)[from];
  }
}

}  // namespace atk::cuda
