// What tree_attention and paged_attention prepare alike.
#include "cuda/attention.h"

#include <algorithm>

#include "common/check.h"
#include "common/layout.h"
#include "cuda/attention_dtypes.h"
#include "cuda/words.h"

namespace atk::cuda {
namespace {

void check_partials(const Partials& partials, int64_t H, int64_t entries, int64_t G, int64_t Dv) {
  Sizes sizes;
  sizes.bind("part_out", partials.out, {"H", "E", "G", "Dv"});
  sizes.bind("part_lse", partials.lse, {"H", "E", "G"});
  for (const auto& [name, view] : {std::pair{"part_out", &partials.out}, {"part_lse", &partials.lse}}) {
    check_dtype(name, *view, DType::f32);
    check_contiguous(name, *view);
  }
  for (const auto& [letter, wanted] : {std::pair{"H", H}, {"E", entries}, {"G", G}, {"Dv", Dv}})
    check_size("part_out", std::string(letter) + " = " + std::to_string(wanted), sizes[letter], wanted);
}

}  // namespace

AttentionJob attention_job(const Attention& a, const Partials& partials, int64_t entries) {
  const int64_t D = a.q.shape[2], Dv = a.v_cache.shape[3], H = a.k_cache.shape[2], G = a.q.shape[1] / H;
  if (std::max(D, Dv) > kMaxHeadDim)
    fail("k_cache, v_cache", "head dims of at most " + std::to_string(kMaxHeadDim),
         std::to_string(D) + " and " + std::to_string(Dv));
  check_partials(partials, H, entries, G, Dv);
  constexpr float kLog2e = 1.4426950408889634f;
  const AttentionOptions& options = a.options;
  const float cap = options.softcap;
  return {.q = a.q.data,
          .k = a.k_cache.data,
          .v = a.v_cache.data,
          .q_row_stride = a.q.strides[0],
          .q_head_stride = a.q.strides[1],
          .k_layout = layer_layout(a.k_cache),
          .v_layout = layer_layout(a.v_cache),
          .D = static_cast<int>(D),
          .Dv = static_cast<int>(Dv),
          .H = static_cast<int>(H),
          .G = static_cast<int>(G),
          .aligned = word_bytes({&a.k_cache, &a.v_cache}) == 16,
          .items = nullptr,
          .pages = nullptr,
          .entries = nullptr,
          .row_ptr = nullptr,
          .positions = nullptr,
          .shifts = nullptr,
          .cos = nullptr,
          .sin = nullptr,
          .num_items = 0,
          .R = 0,
          .interleaved = options.interleaved,
          .block_tables = nullptr,
          .seq_lens = nullptr,
          .table_stride = 0,
          .chunk = 0,
          .splits = 0,
          .part_out = partials.out.as<float>(),
          .part_lse = partials.lse.as<float>(),
          .entry_of = nullptr,
          .num_entries = entries,
          .scale = cap == 0.0f ? options.scale * kLog2e : options.scale / cap,
          .softcap = cap * kLog2e,
          .window = options.window,
          .stages = 0};
}

ReduceJob reduce_job(const Attention& a, const Partials& partials, int64_t entries) {
  return {.part_out = partials.out.as<const float>(),
          .part_lse = partials.lse.as<const float>(),
          .entry_of = nullptr,
          .row_ptr = nullptr,
          .seq_lens = nullptr,
          .num_entries = entries,
          .splits = 0,
          .chunk = 0,
          .window = a.options.window,
          .rows = a.q.shape[0],
          .G = static_cast<int>(a.q.shape[1] / a.k_cache.shape[2]),
          .Hq = static_cast<int>(a.q.shape[1]),
          .Dv = static_cast<int>(a.v_cache.shape[3]),
          .sinks = a.sinks ? a.sinks->as<const float>() : nullptr,
          .out = a.out.data,
          .lse = a.lse.as<float>(),
          .out_row_stride = a.out.strides[0],
          .out_head_stride = a.out.strides[1],
          .lse_row_stride = a.lse.strides[0],
          .lse_head_stride = a.lse.strides[1]};
}

void attend_items(AttentionLaunch x, cudaStream_t stream) {
  switch (x.dtype) {
    case DType::f32:
      return attend_f32(x, stream);
    case DType::bf16:
      return attend_bf16(x, stream);
    default:
      return attend_f16(x, stream);
  }
}

SharedPlan attention_shared(DType dtype, int64_t D, int64_t Dv, double rows, int64_t limit) {
  switch (dtype) {
    case DType::f32:
      return shared_f32(D, Dv, rows, limit);
    case DType::bf16:
      return shared_bf16(D, Dv, rows, limit);
    default:
      return shared_f16(D, Dv, rows, limit);
  }
}

}  // namespace atk::cuda
