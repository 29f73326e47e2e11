// What the launchers of tree_attention and paged_attention hand to the attention kernels.
//
//   item     a chunk of a node's tokens (paged: of a sequence's), at most a few thousand
//   tile     M of the rows (entries x query heads of a group) that see an item; a block of threads computes one tile
//   for
//            one kv head against the whole item
//   partial  what one row gets from one item: sum_k exp(s_k) v_k / sum_k exp(s_k) and log sum_k exp(s_k)
//
// Then reduce_partials() merges each row's partials in the order of the plan. A row's arithmetic is the same whichever
// rows share its tile: tokens are dealt to the warps by their place in the item, and every product is made by the same
// instruction whatever M is. So a branch's result does not depend on its siblings.
#pragma once

#include <cuda_runtime_api.h>

#include "common/slots.h"
#include "common/view.h"
#include "cuda/ops.h"

namespace atk::cuda {

struct AttentionJob {
  // Strides in elements.
  const void *q, *k, *v;
  int64_t q_row_stride, q_head_stride;
  CacheLayout k_layout, v_layout;
  int D, Dv, H, G;
  bool aligned;  // rows of q, K and V lie at multiples of 16 bytes and are such long
  // A plan (tree_attention) ...
  const Item* items;  // null: paged
  const int32_t* pages;
  const Entry* entries;
  const int32_t *row_ptr, *positions, *shifts;
  const float *cos, *sin;  // [K, R] or null
  int64_t num_items;
  int R;
  bool interleaved;
  // ... or block tables [B, M] (paged_attention): chunk c of row b is entry b * splits + c.
  const int32_t *block_tables, *seq_lens;
  int64_t table_stride, chunk, splits;
  // Partials, [H, E, G, Dv] and [H, E, G], by entry; entry_of[partial].
  float *part_out, *part_lse;
  int32_t* entry_of;
  int64_t num_entries;
  // Logits in base 2 are scale * <q, k>, or softcap * tanh(scale * <q, k>) where softcap is not 0.
  float scale, softcap;
  int64_t window;  // 0: none
  int stages;      // of each warp's ring of K and V
};

struct ReduceJob {
  const float *part_out, *part_lse;
  const int32_t *entry_of, *row_ptr;  // tree_attention
  const int32_t* seq_lens;            // paged_attention
  int64_t num_entries, splits, chunk, window, rows;
  int G, Hq, Dv;
  const float* sinks;
  void* out;
  float* lse;
  int64_t out_row_stride, out_head_stride, lse_row_stride, lse_head_stride;
};

// Both launch on `stream` of the current device.
struct AttentionLaunch {
  AttentionJob job;
  DType dtype;
  int64_t work;  // items, or rows x splits
  double rows;   // that see an item, in the mean
  const char* op;
};

// Of a block, on a chip with a given limit: stages of each warp's ring, and bytes in all.
struct SharedPlan {
  int stages;
  int64_t bytes;
};

void attend_items(AttentionLaunch launch, cudaStream_t stream);

SharedPlan attention_shared(DType dtype, int64_t D, int64_t Dv, double rows, int64_t limit);

void reduce_partials(const char* op, DType dtype, const ReduceJob& job, cudaStream_t stream);

// Jobs of an op, all but the plan or the block tables. Raises for head dims beyond kMaxHeadDim and for scratch that
// does not fit `entries`.
AttentionJob attention_job(const Attention& args, const Partials& partials, int64_t entries);

ReduceJob reduce_job(const Attention& args, const Partials& partials, int64_t entries);

}  // namespace atk::cuda
