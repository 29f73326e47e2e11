// The CPU ops. Each checks its arguments before it touches memory (atk::Error; values of a plan are checked when it is
// made), allocates nothing but small thread-local scratch, and shares its work among the threads of cpu/threads.h.
//
// T rows, Hq query heads, H kv heads, D and Dv head dims of K and V, P pages of S slots, L layers, N tokens, I items,
// E entries, K shifts, R rotated pairs.
#pragma once

#include "common/append_kv.h"
#include "common/attention.h"
#include "common/copy_pages.h"
#include "common/join_append.h"
#include "common/merge_states.h"
#include "common/packed_linear.h"
#include "common/quantized_linear.h"
#include "common/row_attention.h"
#include "common/sample.h"

namespace atk {

void tree_attention(const TreeAttention& args, const View& workspace);

// Floats of scratch for the partial results of `partials` (row, item) pairs.
int64_t tree_attention_workspace(int64_t partials, int64_t q_heads, int64_t kv_heads, int64_t v_head_dim);

void paged_attention(const PagedAttention& args, const View& workspace);

int64_t paged_attention_workspace(int64_t max_blocks, int64_t page_size, int64_t chunk, int64_t rows, int64_t q_heads,
                                  int64_t kv_heads, int64_t v_head_dim);

void append_kv(const AppendKV& args);

void merge_states(const MergeStates& args);

void join_append(const JoinAppend& args);

void copy_pages(const CopyPages& args);

void sample(const Sample& args);

// Layers of one input, so one x: their blocks are shared among the threads together.
void packed_linears(const PackedLinear* layers, int64_t count);

// Layers of one input, so one x, which is made to integers once.
void quantized_linears(const QuantizedLinear* layers, int64_t count, const View& workspace);

// Floats of scratch for `rows` rows of activations as integers.
int64_t quantized_linear_workspace(int64_t rows, int64_t in_features);

// Attention over packed rows for training, and its gradients.
void row_attention(const RowAttention& args, const View& workspace);

void row_attention_backward(const RowAttention& args, const RowAttentionGrads& grads, const View& workspace);

int64_t row_attention_workspace(int64_t T, int64_t H, int64_t D, int64_t Dv);

}  // namespace atk
