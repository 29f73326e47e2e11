// What the attention ops hand to the kernels of one instruction set: the problem as raw pointers, and units of work.
//
//   unit     one item (a chunk of a node's tokens), one or some neighbouring kv heads, some of the item's entries
//   M rows   of a unit and head: its entries x the G query heads; they share every K/V tile that is loaded
//   partial  what one row gets from one item: sum_k exp(s_k) v_k / sum_k exp(s_k) and log sum_k exp(s_k)
//
// Phase 1 runs attend() for every unit, phase 2 reduce() for every row with several partials. All arithmetic of a row
// is the same whichever rows share its unit, and partials are merged in the order of the plan: so a branch's result
// does not depend on its siblings, on the threads, or on how units were cut.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/slots.h"
#include "common/view.h"
#include "cpu/isa.h"

namespace atk {

struct AttentionProblem {
  DType dtype = DType::f32;                     // of q, caches and out
  const void* q = nullptr;                      // [T, Hq, D]
  int64_t q_row_stride = 0, q_head_stride = 0;  // strides in elements, here and below
  const void* k = nullptr;                      // [P, S, H, D]
  const void* v = nullptr;                      // [P, S, H, Dv]
  CacheLayout k_layout = {}, v_layout = {};
  int64_t T = 0, Hq = 0, H = 0, D = 0, Dv = 0;
  const Item* items = nullptr;         // [I]
  const int32_t* pages = nullptr;      // page ids of the items
  const Entry* entries = nullptr;      // [E]
  const int32_t* row_ptr = nullptr;    // [T + 1]
  const int32_t* positions = nullptr;  // [T]
  const int32_t* shifts = nullptr;     // [K]
  const float* cos = nullptr;          // [K, R]; null: shifts move positions only
  const float* sin = nullptr;          // [K, R]
  int64_t R = 0;
  bool interleaved = false;
  const float* sinks = nullptr;  // [Hq] or null
  void* out = nullptr;           // [T, Hq, Dv]
  int64_t out_row_stride = 0, out_head_stride = 0;
  float* lse = nullptr;  // [T, Hq]
  int64_t lse_row_stride = 0, lse_head_stride = 0;
  float scale = 1, softcap = 0;  // softcap 0: none
  int64_t window = 0;            // 0: none
  // Partials of the kv heads [first_head, first_head + heads), the ones this pass computes.
  float* partial_out = nullptr;  // [partials, heads * G, Dv]
  float* partial_lse = nullptr;  // [partials, heads * G]
  int64_t first_head = 0, heads = 0;

  int64_t group() const { return Hq / H; }
  int64_t partials_of(int64_t row) const { return row_ptr[row + 1] - row_ptr[row]; }
};

struct AttentionUnit {
  int32_t item, head, heads, entry_begin, entry_end;
};

struct AttentionKernels {
  // Bytes of scratch that attend() needs for a unit.
  size_t (*scratch_bytes)(const AttentionProblem& problem, const AttentionUnit& unit);
  // `following`, or null, is the unit that the thread will probably get next: its first rows are fetched ahead.
  // `scratch` is aligned to 64 bytes.
  void (*attend)(const AttentionProblem& problem, const AttentionUnit& unit, const AttentionUnit* following,
                 void* scratch);
  // All query heads of one kv head of one row that has no partial, or several.
  void (*reduce)(const AttentionProblem& problem, int64_t row, int64_t head);
};

// Floats of workspace to run with: for all heads at once where that is small, else for a pass over some kv heads.
int64_t attention_workspace(int64_t partials, int64_t q_heads, int64_t kv_heads, int64_t v_head_dim);

// Both phases for a problem whose plan is known to be right; in passes over as many kv heads as the workspace has room
// for. Raises where there is none for one.
void run_attention(AttentionProblem problem, int64_t num_items, const View& workspace);

}  // namespace atk

ATK_DECLARE_ISA_TABLE(AttentionKernels, attention_kernels)
