// The CUDA ops: launched on the caller's stream of the current device; they allocate and synchronise nothing, and look
// at no index value.
#pragma once

#include <cuda_runtime_api.h>

#include "common/append_kv.h"
#include "common/attention.h"
#include "common/copy_pages.h"
#include "common/join_append.h"
#include "common/merge_states.h"
#include "common/sample.h"

namespace atk::cuda {

void append_kv(const AppendKV& args, cudaStream_t stream);

void join_append(const JoinAppend& args, cudaStream_t stream);

void copy_pages(const CopyPages& args, cudaStream_t stream);

void merge_states(const MergeStates& args, cudaStream_t stream);

// A row whose logits have no finite maximum gets token -1 and log-probability NaN.
void sample(const Sample& args, cudaStream_t stream);

// Scratch of the attention ops. E entries: those of the plan, or B x ceil(M S / chunk) splits.
struct Partials {
  View out;       // [H, E, G, Dv] float32
  View lse;       // [H, E, G] float32
  View entry_of;  // [E] int32: where the partial with a number stands; tree_attention only
};

void tree_attention(const TreeAttention& args, const Partials& partials, cudaStream_t stream);

void paged_attention(const PagedAttention& args, const Partials& partials, cudaStream_t stream);

// Head dims up to this.
constexpr int64_t kMaxHeadDim = 256;

}  // namespace atk::cuda
