// append_kv on the device: one launch for K and V; a row moves as 16-byte words wherever sizes and addresses allow.
#pragma once

#include "common/slots.h"

namespace atk::cuda {

// K or V: rows [T, H] of `row_words` words to the cache [P, S, H]. Strides are in words.
struct AppendRows {
  const void* src;
  int64_t src_token_stride, src_head_stride;
  void* cache;
  CacheLayout layout;
  int64_t row_words;
};

struct AppendJob {
  AppendRows rows[2];  // K, V: blockIdx.y
  const int64_t* slots;
  int64_t slots_stride, num_slots, tokens, heads;
};

// One thread a word. Neighbouring threads take neighbouring words of a row, then heads, then tokens, so that loads and
// stores coalesce. kNoSlot is skipped; another slot outside the cache traps, as torch's own indexing does: the host
// cannot see it without a sync.
template <class Word>
__global__ void append_rows(const __grid_constant__ AppendJob job) {
  const AppendRows& rows = job.rows[blockIdx.y];
  const int64_t words = job.tokens * job.heads * rows.row_words;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words; i += step) {
    const int64_t row = i / rows.row_words, word = i - row * rows.row_words;
    const int64_t token = row / job.heads, head = row - token * job.heads;
    const int64_t slot = job.slots[token * job.slots_stride];
    if (slot == kNoSlot) continue;
    if (slot < 0 || slot >= job.num_slots) __trap();
    const int64_t from = token * rows.src_token_stride + head * rows.src_head_stride + word;
    static_cast<Word*>(rows.cache)[rows.layout.row(slot, head) + word] = static_cast<const Word*>(rows.src)[from];
  }
}

}  // namespace atk::cuda
