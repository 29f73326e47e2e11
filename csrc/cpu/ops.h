// The CPU ops. Each checks all it is given before it touches memory (atk::Error), allocates nothing but small
// thread-local scratch, and shares its work among the threads of cpu/threads.h.
// T rows, Hq query heads, H kv heads, D and Dv head dims of K and V, P pages of S slots, L layers, N tokens,
// I items, E entries, K shifts, R rotated pairs.
#pragma once

#include "common/append_kv.h"
#include "common/view.h"

namespace atk {

struct AttentionOptions {
  float scale;
  int64_t window;  // 0: no window
  float softcap;   // 0: no cap
  bool interleaved;
};

struct TreeAttention {
  View q;                 // [T, Hq, D]
  View k_cache, v_cache;  // [P, S, H, D], [P, S, H, Dv]
  View items;             // [I, 6] int32, see common/slots.h
  View pages;             // [*] int32
  View entries;           // [E, 5] int32
  View row_ptr;           // [T + 1] int32
  View positions;         // [T] int32
  View shifts;            // [K] int32
  OptionalView cos, sin;  // [K, R] float32
  OptionalView sinks;     // [Hq] float32
  View out;               // [T, Hq, Dv]
  View lse;               // [T, Hq] float32
  View workspace;         // [tree_attention_workspace(...)] float32
  AttentionOptions options;
};

void tree_attention(const TreeAttention& args);

// Floats of scratch for the partial results of `partials` (row, item) pairs.
int64_t tree_attention_workspace(int64_t partials, int64_t q_heads, int64_t kv_heads, int64_t v_head_dim);

struct PagedAttention {
  View q;                 // [B, Hq, D]
  View k_cache, v_cache;  // [P, S, H, D], [P, S, H, Dv]
  View block_tables;      // [B, M] int32
  View seq_lens;          // [B] int32; the query's position is seq_len - 1
  OptionalView sinks;     // [Hq] float32
  View out;               // [B, Hq, Dv]
  View lse;               // [B, Hq] float32
  View workspace;         // [paged_attention_workspace(...)] float32
  int64_t chunk;          // tokens per work item
  AttentionOptions options;
};

void paged_attention(const PagedAttention& args);

int64_t paged_attention_workspace(int64_t max_blocks, int64_t page_size, int64_t chunk, int64_t rows, int64_t q_heads,
                                  int64_t kv_heads, int64_t v_head_dim);

void append_kv(const AppendKV& args);

struct MergeStates {
  View outs, lses;  // [n, T, H, Dv], [n, T, H] float32
  View out, lse;    // [T, H, Dv], [T, H] float32
};

void merge_states(const MergeStates& args);

struct JoinAppend {
  View k_caches, v_caches;  // [L, P, S, H, D], [L, P, S, H, Dv]
  View src_slots;           // [N] int64
  View dst_slots;           // [N] int64, distinct, none of them a source
  View cos, sin;            // [L, R] float32
  bool interleaved;
};

void join_append(const JoinAppend& args);

struct CopyPages {
  View k_caches, v_caches;  // [L, P, S, H, D], [L, P, S, H, Dv]
  View src, dst;            // [n] int64 page ids; dst distinct, none of them a source
};

void copy_pages(const CopyPages& args);

}  // namespace atk
