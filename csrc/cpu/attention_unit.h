// One unit of work (attention.h). It walks its tokens in tiles. Each tile of K and V is packed once; then, six rows at
// a time, S = Q K^T, the online softmax (Milakov & Gimelshein, arXiv 1805.02867; tiled as in FlashAttention, arXiv
// 2205.14135), and O = alpha O + P V, while the tile is in the first-level cache and the next one is on its way to the
// second.
#pragma once

#include "cpu/attention_few.h"
#include "cpu/attention_result.h"
#include "cpu/attention_scratch.h"

namespace atk::ATK_ISA {

template <class Storage>
class Unit {
 public:
  Unit(const AttentionProblem& problem, const AttentionUnit& unit, const AttentionUnit* following, void* block)
      : x_(problem),
        item_(problem.items[unit.item]),
        head_(unit.head),
        heads_(unit.heads),
        following_(following),
        first_(problem.entries + unit.entry_begin),
        entries_(unit.entry_end - unit.entry_begin),
        group_(problem.group()),
        M_(entries_ * group_),
        depth_(dwords<Storage>(problem.D)),
        columns_(round_up(problem.Dv, W)),
        tile_(tile_tokens(depth_)),
#if defined(ATK_LANES)
        few_(serves_few<Storage>(M_, problem.D, problem.Dv)),
#endif
        at_(block, problem, unit),
        now_(at_.tiles),
        next_(at_.tiles + 1),
        rows_(at_.tiles + 2) {
  }

  void run() {
    __builtin_memset(at_.zeros, 0, (x_.D > x_.Dv ? x_.D : x_.Dv) * sizeof(Storage));
    start_rows();
    int64_t begin = first_seen_ / tile_ * tile_;
    find_rows(x_, item_, head_, begin, tile_end(begin), *now_);
    for (; begin < last_seen_; begin += tile_) {
      find_next_rows(begin + tile_);
      const Seen seen = see(begin);
      if (seen.any) tile(seen);
      TileRows<Storage>* const done = now_;
      now_ = next_;
      next_ = done;
    }
    for (int64_t h = 0; h < heads_; ++h)
      for (int64_t m = 0; m < M_; ++m) write(h, m);
  }

 private:
  using Math = typename Operand<Storage>::Math;

  void start_rows() {
    first_seen_ = item_.length;
    last_seen_ = 0;
    for (int64_t e = 0; e < entries_; ++e) {
      const Entry& entry = first_[e];
      clip_to_window(e);
      const float* const cos = x_.cos && x_.shifts[entry.shift_index] ? x_.cos + entry.shift_index * x_.R : nullptr;
      const float* const sin = cos ? x_.sin + entry.shift_index * x_.R : nullptr;
      const auto* const q =
          static_cast<const Storage*>(x_.q) + entry.row * x_.q_row_stride + head_ * group_ * x_.q_head_stride;
      for (int64_t h = 0; h < heads_; ++h) {
        for (int64_t g = 0; g < group_; ++g) {
          const int64_t m = h * M_ + e * group_ + g;
          pack_q(q + (h * group_ + g) * x_.q_head_stride, x_.D, cos, sin, x_.R, x_.interleaved, at_.q + m * depth_);
          at_.rows[m] = RowState();
        }
      }
    }
    __builtin_memset(at_.o, 0, heads_ * M_ * columns_ * sizeof(float));
  }

  // Key t is at position item.position + t + shift; the window keeps 0 <= position of the row - that < window.
  void clip_to_window(int64_t e) {
    const Entry& entry = first_[e];
    int64_t begin = entry.begin, end = entry.end;
    if (x_.window > 0) {
      const int64_t diagonal = int64_t{x_.positions[entry.row]} - item_.position - x_.shifts[entry.shift_index];
      if (begin <= diagonal - x_.window) begin = diagonal - x_.window + 1;
      if (end > diagonal + 1) end = diagonal + 1;
    }
    at_.begin[e] = static_cast<int32_t>(begin);
    at_.end[e] = static_cast<int32_t>(end);
    if (begin >= end) return;
    if (begin < first_seen_) first_seen_ = begin;
    if (end > last_seen_) last_seen_ = end;
  }

  int64_t tile_end(int64_t begin) const { return begin + tile_ < last_seen_ ? begin + tile_ : last_seen_; }

  struct Seen {
    uint64_t any = 0, all = ~uint64_t{0};  // tokens of a tile that some row sees, that every row sees
  };

  Seen see(int64_t tile_begin) {
    Seen seen;
    for (int64_t e = 0; e < entries_; ++e) {
      const int64_t end = at_.end[e] - tile_begin;
      const uint64_t bits = bits_between(at_.begin[e] - tile_begin, end < tile_ ? end : tile_);
      for (int64_t g = 0; g < group_; ++g) at_.visible[e * group_ + g] = bits;
      seen.any |= bits;
      seen.all &= bits;
    }
    return seen;
  }

  // What this thread will most likely need after the current tile: the unit's next one or the following unit's first.
  void find_next_rows(int64_t tile_begin) const {
    if (tile_begin < last_seen_) return find_rows(x_, item_, head_, tile_begin, tile_end(tile_begin), *next_);
    next_->count = 0;
    if (!following_) return;
    const Item& item = x_.items[following_->item];
    find_rows(x_, item, following_->head, 0, item.length < tile_ ? item.length : tile_, *next_);
  }

  // The rows of one head. A token that is not seen may hold anything: it is read as zeros.
  void select_head(int64_t h, uint64_t seen, int64_t tokens) const {
    const int64_t k_offset = h * x_.k_layout.head_stride, v_offset = h * x_.v_layout.head_stride;
    for (int64_t t = 0; t < tokens; ++t) {
      const bool is_seen = seen >> t & 1;
      rows_->k[t] = is_seen ? now_->k[t] + k_offset : at_.zeros;
      rows_->v[t] = is_seen ? now_->v[t] + v_offset : at_.zeros;
    }
  }

  void tile(Seen seen) {
    const int tokens = static_cast<int>(round_up(64 - __builtin_clzll(seen.any), W));
    look_ahead(tokens);
    for (int64_t h = 0; h < heads_; ++h) {
      select_head(h, seen.any, tokens);
#if defined(ATK_LANES)
      if (few_ && seen.any == seen.all) {
        few_rows(h, tokens);
        continue;
      }
#endif
      pack_k(rows_->k, tokens, x_.D, tile_, at_.k, ahead_);
      pack_v(rows_->v, tokens, x_.Dv, at_.v, ahead_);
      if (seen.any == seen.all || all_finite(tokens))
        rows(h, 0, M_, tokens);
      else
        each_entry_by_itself(h, tokens);
    }
  }

  // Zero times infinity or NaN is NaN. Where a value is not finite, each entry is computed from the values that it sees
  // and no others, so that it reaches no sibling.
  void each_entry_by_itself(int64_t h, int tokens) {
    for (int64_t m = 0; m < M_; m += group_) {
      if (!at_.visible[m]) continue;
      select_head(h, at_.visible[m], tokens);
      pack_v(rows_->v, tokens, x_.Dv, at_.v, ahead_);
      rows(h, m, m + group_, tokens);
    }
  }

  // Zero times anything else is not zero.
  bool all_finite(int tokens) const {
    Vec sum = splat(0.0f);
    for (int64_t i = 0; i < dwords<Storage>(tokens) * columns_; i += W)
      sum = Math::multiply_add(load(at_.v + i), splat(0.0f), sum);
    return reduce_add(sum) == 0.0f;
  }

  void rows(int64_t h, int64_t begin, int64_t end, int tokens) {
    const int64_t M = end - begin, blocks = ceil_div(M, kMaxRows);
    for (int64_t b = 0; b < blocks; ++b) block(h, begin + M * b / blocks, begin + M * (b + 1) / blocks, tokens);
  }

  // Spreads the next tile's rows, all heads of a token at once, over the vector operations of this tile.
  void look_ahead(int64_t tokens) {
    const int64_t zipping = (few_ ? 1 : kZipCost) * dwords<Storage>(tokens) * columns_ / W;
    const int64_t packing = tokens / W * ceil_div(depth_, W) * kTransposeCost + zipping;
    const int64_t products = M_ * tokens / W * depth_ + M_ * columns_ / W * dwords<Storage>(tokens);
    const int64_t k_width = (heads_ - 1) * x_.k_layout.head_stride + x_.D;
    const int64_t v_width = (heads_ - 1) * x_.v_layout.head_stride + x_.Dv;
    const int64_t bytes = (k_width > v_width ? k_width : v_width) * static_cast<int64_t>(sizeof(Storage));
    ahead_ = {.k = reinterpret_cast<const char* const*>(next_->k),
              .v = reinterpret_cast<const char* const*>(next_->v),
              .rows = next_->count,
              .lines = ceil_div(bytes, 64)};
    if (next_->count > 0) ahead_.pace = heads_ * (packing + products) / (next_->count * ahead_.lines);
  }

  void block(int64_t h, int64_t begin, int64_t end, int tokens) {
    const int rows = static_cast<int>(end - begin);
    uint64_t any = 0;
    for (int64_t m = begin; m < end; ++m) any |= at_.visible[m];
    if (!any) return;
    scores(at_.q + (h * M_ + begin) * depth_, rows, tokens);
    float alpha[kMaxRows];
    probabilities(h, begin, rows, tokens, alpha);
    gemm<Math>(rows,
               {.a = at_.p,
                .b = at_.v,
                .c = at_.o + (h * M_ + begin) * columns_,
                .a_stride = tile_,
                .b_stride = columns_,
                .c_stride = columns_,
                .k = dwords<Storage>(tokens),
                .c_scale = alpha,
                .ahead = &ahead_},
               columns_);
  }

#if defined(ATK_LANES)
  // All rows of a head where they are few, and see the same tokens: V is not packed, and K neither where a block of it
  // and the rows' sums are held in registers together.
  void few_rows(int64_t h, int tokens) {
    static_assert(kFewRows <= kMaxRows);
    const float* const q = at_.q + h * M_ * depth_;
    float alpha[kMaxRows];
    if constexpr (kChunks == 1) {
      pack_k(rows_->k, tokens, x_.D, tile_, at_.k, ahead_);
      scores(q, static_cast<int>(M_), tokens);
    }
    with_few(static_cast<int>(M_), [&](auto count) {
      constexpr int rows = decltype(count)::value;
      if constexpr (kChunks > 1) few_scores<Storage, rows>(rows_->k, tokens, x_.D, q, at_.s, tile_, ahead_);
      probabilities(h, 0, rows, tokens, alpha);
      few_values<Storage, rows>(rows_->v, tokens, x_.Dv, at_.p, tile_, alpha, at_.o + h * M_ * columns_, columns_,
                                ahead_);
    });
  }
#endif

  // s [rows, tokens] = q [rows, D] times the packed K.
  void scores(const float* q, int rows, int tokens) {
    gemm<Math>(rows,
               {.a = q,
                .b = at_.k,
                .c = at_.s,
                .a_stride = depth_,
                .b_stride = tile_,
                .c_stride = tile_,
                .k = depth_,
                .c_scale = nullptr,
                .ahead = &ahead_},
               tokens);
  }

  // The scores of rows [begin, begin + rows) become probabilities; alpha [rows]: what their outputs are scaled by.
  void probabilities(int64_t h, int64_t begin, int rows, int tokens, float* alpha) {
    const Logits logits(x_.scale, x_.softcap);
    for (int i = 0; i < rows; ++i)
      alpha[i] = softmax<Math>(logits, at_.s + i * tile_, at_.visible[begin + i], tokens, at_.rows[h * M_ + begin + i],
                               at_.p + i * tile_);
  }

  void write(int64_t h, int64_t m) const {
    const Entry& entry = first_[m / group_];
    const int64_t q_head = (head_ + h) * group_ + m % group_;
    const RowState& state = at_.rows[h * M_ + m];
    const float sum = state.sum(), lse = state.lse(sum);
    const float* const o = at_.o + (h * M_ + m) * columns_;
    const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
    if (x_.partials_of(entry.row) > 1) {
      const int64_t heads = x_.heads * group_;
      const int64_t place = entry.partial * heads + q_head - x_.first_head * group_;
      for (int64_t d = 0; d < x_.Dv; ++d) x_.partial_out[place * x_.Dv + d] = o[d] * scale;
      x_.partial_lse[place] = lse;
      return;
    }
    const LseMerge merge = merge_with_sink(x_, q_head, 1, [=](int64_t) { return lse; });
    write_out<Storage>(x_, entry.row, q_head, 0, x_.Dv, o, scale * merge.weight(lse));
    write_lse(x_, entry.row, q_head, merge.lse());
  }

  const AttentionProblem& x_;
  const Item& item_;
  const int64_t head_, heads_;
  const AttentionUnit* const following_;
  const Entry* const first_;
  const int64_t entries_, group_, M_, depth_, columns_, tile_;
  const bool few_ = false;
  int64_t first_seen_, last_seen_;
  const Scratch<Storage> at_;
  TileRows<Storage>*now_, *next_, *const rows_;
  Ahead ahead_;
};

}  // namespace atk::ATK_ISA
