// The attention kernels of one instruction set: see attention.h for the words. A unit walks its tokens in tiles of 64.
// Each tile of K and V is packed once; then, six rows at a time, S = Q K^T, the online softmax (Milakov & Gimelshein,
// arXiv 1805.02867; tiled as in FlashAttention, arXiv 2205.14135), and O = alpha O + P V, while the tile is in cache.
#include <limits>

#include "common/lse.h"
#include "cpu/attention.h"
#include "cpu/attention_pack.h"
#include "cpu/attention_softmax.h"

namespace atk::ATK_ISA {
namespace {

// The merge of a row's n partials and, if there are sinks, of the query head's sink.
template <class LseAt>
LseMerge merge_with_sink(const AttentionProblem& x, int64_t q_head, int64_t n, const LseAt& lse_at) {
  return LseMerge::over(n, lse_at, x.sinks ? x.sinks[q_head] : -std::numeric_limits<float>::infinity());
}

// out[begin, begin + width) = scale * o
template <class Storage>
void write_out(const AttentionProblem& x, int64_t row, int64_t q_head, int64_t begin, int64_t width, const float* o,
               float scale) {
  auto* const out = static_cast<Storage*>(x.out) + row * x.out_row_stride + q_head * x.out_head_stride + begin;
  for (int64_t d = 0; d < width; ++d) out[d] = from_float<Storage>(o[d] * scale);
}

void write_lse(const AttentionProblem& x, int64_t row, int64_t q_head, float lse) {
  x.lse[row * x.lse_row_stride + q_head * x.lse_head_stride] = lse;
}

// Where the K and V of a tile's tokens lie.
template <class Storage>
struct TileRows {
  const Storage *k[kTile], *v[kTile];
  int64_t count;
};

// Carves one unit's scratch out of a block; run over a null block it only counts the bytes.
template <class Storage>
struct Scratch {
  float *q, *k, *v, *o;       // packed operands, and the output rows [M, Dv rounded up to W]
  float *s, *p;               // a block's scores and probabilities [kMaxRows, kTile]
  RowState* rows;             // [M]
  uint64_t* visible;          // [M]: of the current tile
  int32_t *begin, *end;       // [entries]: the tokens each entry sees, after the window
  TileRows<Storage>* tiles;   // [2]: the current tile's and the next one's
  Storage* zeros;             // a K or V row
  size_t bytes = 0;

  Scratch(void* block, const AttentionProblem& x, int64_t M, int64_t entries) {
    char* const base = static_cast<char*>(block);
    const auto take = [&](auto*& to, int64_t count) {
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(base + bytes);
      bytes += round_up(count * static_cast<int64_t>(sizeof(*to)), 64);
    };
    const int64_t depth = dwords<Storage>(x.D), columns = round_up(x.Dv, W);
    take(q, M * depth);
    take(o, M * columns);
    take(k, depth * kTile);
    take(v, dwords<Storage>(kTile) * columns);
    take(s, kMaxRows * kTile);
    take(p, kMaxRows * kTile);
    take(rows, M);
    take(visible, M);
    take(begin, entries);
    take(end, entries);
    take(tiles, 2);
    take(zeros, x.D > x.Dv ? x.D : x.Dv);
  }
};

template <class Storage>
class Unit {
 public:
  Unit(const AttentionProblem& problem, const AttentionUnit& unit, void* block)
      : x_(problem),
        item_(problem.items[unit.item]),
        head_(unit.head),
        first_(problem.entries + unit.entry_begin),
        entries_(unit.entry_end - unit.entry_begin),
        group_(problem.group()),
        M_(entries_ * group_),
        depth_(dwords<Storage>(problem.D)),
        columns_(round_up(problem.Dv, W)),
        at_(block, problem, M_, entries_),
        now_(at_.tiles),
        next_(at_.tiles + 1) {}

  void run() {
    __builtin_memset(at_.zeros, 0, (x_.D > x_.Dv ? x_.D : x_.Dv) * sizeof(Storage));
    start_rows();
    int64_t begin = first_seen_ / kTile * kTile;
    find_rows(begin, *now_);
    for (; begin < last_seen_; begin += kTile) {
      find_rows(begin + kTile, *next_);
      const Seen seen = see(begin);
      if (seen.any) tile(begin, seen);
      TileRows<Storage>* const done = now_;
      now_ = next_;
      next_ = done;
    }
    for (int64_t m = 0; m < M_; ++m) write(m);
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
      for (int64_t g = 0; g < group_; ++g) {
        const int64_t m = e * group_ + g;
        const auto* q = static_cast<const Storage*>(x_.q) + entry.row * x_.q_row_stride +
                        (head_ * group_ + g) * x_.q_head_stride;
        pack_q(q, x_.D, cos, sin, x_.R, x_.interleaved, at_.q + m * depth_);
        at_.rows[m] = RowState();
      }
    }
    __builtin_memset(at_.o, 0, M_ * columns_ * sizeof(float));
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

  struct Seen {
    uint64_t any = 0, all = ~uint64_t{0};  // tokens of a tile that some row sees, that every row sees
  };

  Seen see(int64_t tile_begin) {
    Seen seen;
    for (int64_t e = 0; e < entries_; ++e) {
      const uint64_t bits = bits_between(at_.begin[e] - tile_begin, at_.end[e] - tile_begin);
      for (int64_t g = 0; g < group_; ++g) at_.visible[e * group_ + g] = bits;
      seen.any |= bits;
      seen.all &= bits;
    }
    return seen;
  }

  void find_rows(int64_t tile_begin, TileRows<Storage>& rows) const {
    const auto* k = static_cast<const Storage*>(x_.k) + head_ * x_.k_layout.head_stride;
    const auto* v = static_cast<const Storage*>(x_.v) + head_ * x_.v_layout.head_stride;
    const int64_t page_size = x_.k_layout.page_size;
    rows.count = last_seen_ - tile_begin < kTile ? last_seen_ - tile_begin : kTile;
    if (rows.count <= 0) {
      rows.count = 0;
      return;
    }
    int64_t index = (item_.offset + tile_begin) / page_size, offset = (item_.offset + tile_begin) % page_size;
    for (int64_t t = 0; t < rows.count; ++index, offset = 0) {
      const int64_t page = x_.pages[item_.page_begin + index];
      const Storage* k_row = k + page * x_.k_layout.page_stride + offset * x_.k_layout.slot_stride;
      const Storage* v_row = v + page * x_.v_layout.page_stride + offset * x_.v_layout.slot_stride;
      for (; t < rows.count && offset < page_size; ++t, ++offset) {
        rows.k[t] = k_row;
        rows.v[t] = v_row;
        k_row += x_.k_layout.slot_stride;
        v_row += x_.v_layout.slot_stride;
      }
    }
  }

  // A token that no row sees may hold anything: it is read as zeros.
  void blank(TileRows<Storage>& rows, uint64_t seen, int64_t tokens) const {
    for (int64_t t = 0; t < tokens; ++t)
      if (!(seen >> t & 1)) rows.k[t] = rows.v[t] = at_.zeros;
  }

  void tile(int64_t tile_begin, Seen seen) {
    const int tokens = static_cast<int>(round_up(64 - __builtin_clzll(seen.any), W));
    if (seen.any != ~uint64_t{0}) blank(*now_, seen.any, tokens);
    pack_k(now_->k, tokens, x_.D, at_.k);
    pack_v(now_->v, tokens, x_.Dv, at_.v);
    if (seen.any == seen.all || all_finite(tokens)) return rows(0, M_, tokens);
    // A probability of exactly zero does not silence an infinity or a NaN: give each entry the values it sees alone, so
    // that a branch gone wrong harms no sibling.
    for (int64_t m = 0; m < M_; m += group_) {
      if (!at_.visible[m]) continue;
      find_rows(tile_begin, *now_);
      blank(*now_, at_.visible[m], tokens);
      pack_v(now_->v, tokens, x_.Dv, at_.v);
      rows(m, m + group_, tokens);
    }
  }

  // Zero times anything else is not zero.
  bool all_finite(int tokens) const {
    Vec sum = splat(0.0f);
    for (int64_t i = 0; i < dwords<Storage>(tokens) * columns_; i += W)
      sum = Math::multiply_add(load(at_.v + i), splat(0.0f), sum);
    return reduce_add(sum) == 0.0f;
  }

  // While the products of this tile are computed, the next one's rows are on their way: K's during S, V's during O.
  void rows(int64_t begin, int64_t end, int tokens) {
    const int64_t M = end - begin, blocks = ceil_div(M, kMaxRows);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t from = next_->count * b / blocks, to = next_->count * (b + 1) / blocks;
      block(begin + M * b / blocks, begin + M * (b + 1) / blocks, tokens, from, to);
    }
  }

  Ahead ahead(const Storage* const* rows, int64_t from, int64_t to, int64_t width, int64_t steps) const {
    const auto* pointers = reinterpret_cast<const void* const*>(rows);
    const int64_t pace = to > from && steps > to - from ? steps / (to - from) : 1;
    return {pointers + from, pointers + to, ceil_div(width * static_cast<int64_t>(sizeof(Storage)), 64), pace, 1};
  }

  void block(int64_t begin, int64_t end, int tokens, int64_t from, int64_t to) {
    const int rows = static_cast<int>(end - begin);
    uint64_t any = 0;
    for (int64_t m = begin; m < end; ++m) any |= at_.visible[m];
    if (!any) return;
    gemm<Math>(rows,
               {.a = at_.q + begin * depth_, .b = at_.k, .c = at_.s,
                .a_stride = depth_, .b_stride = kTile, .c_stride = kTile, .k = depth_, .c_scale = nullptr,
                .ahead = ahead(next_->k, from, to, x_.D, depth_ * ceil_div(tokens, kVecColumns * W))},
               tokens);
    float alpha[kMaxRows];
    const Logits logits(x_.scale, x_.softcap);
    for (int i = 0; i < rows; ++i)
      alpha[i] = softmax<Math>(logits, at_.s + i * kTile, at_.visible[begin + i], tokens, at_.rows[begin + i],
                               at_.p + i * kTile);
    gemm<Math>(rows,
               {.a = at_.p, .b = at_.v, .c = at_.o + begin * columns_,
                .a_stride = kTile, .b_stride = columns_, .c_stride = columns_, .k = dwords<Storage>(tokens),
                .c_scale = alpha,
                .ahead = ahead(next_->v, from, to, x_.Dv,
                               dwords<Storage>(tokens) * ceil_div(columns_, kVecColumns * W))},
               columns_);
  }

  void write(int64_t m) const {
    const Entry& entry = first_[m / group_];
    const int64_t q_head = head_ * group_ + m % group_;
    const float sum = at_.rows[m].sum(), lse = at_.rows[m].lse(sum);
    const float* const o = at_.o + m * columns_;
    const float scale = sum > 0.0f ? 1.0f / sum : 0.0f;
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
  const int64_t head_;
  const Entry* const first_;
  const int64_t entries_, group_, M_, depth_, columns_;
  int64_t first_seen_, last_seen_;
  const Scratch<Storage> at_;
  TileRows<Storage>*now_, *next_;
};

template <class Storage>
void reduce_row(const AttentionProblem& x, int64_t row, int64_t head) {
  const int64_t n = x.partials_of(row), heads = x.heads * x.group();
  for (int64_t g = 0; g < x.group(); ++g) {
    const int64_t q_head = head * x.group() + g;
    const int64_t first = x.row_ptr[row] * heads + q_head - x.first_head * x.group();
    float* const lse = x.partial_lse + first;
    const LseMerge merge = merge_with_sink(x, q_head, n, [=](int64_t i) { return lse[i * heads]; });
    for (int64_t i = 0; i < n; ++i) lse[i * heads] = merge.weight(lse[i * heads]);
    for (int64_t d = 0; d < x.Dv; d += kTile) {
      const int64_t width = x.Dv - d < kTile ? x.Dv - d : kTile;
      float sum[kTile] = {};
      for (int64_t i = 0; i < n; ++i) {
        const float weight = lse[i * heads];
        const float* const part = x.partial_out + (first + i * heads) * x.Dv + d;
        if (weight > 0.0f)
          for (int64_t j = 0; j < width; ++j) sum[j] += weight * part[j];
      }
      write_out<Storage>(x, row, q_head, d, width, sum, 1.0f);
    }
    write_lse(x, row, q_head, merge.lse());
  }
}

template <class Fn>
auto with_storage(DType dtype, const Fn& fn) {
  if (dtype == DType::bf16) return fn(bf16{});
  if (dtype == DType::f16) return fn(f16{});
  return fn(float{});
}

size_t scratch_bytes(const AttentionProblem& problem, int64_t rows) {
  return with_storage(problem.dtype, [&]<class Storage>(Storage) {
    return Scratch<Storage>(nullptr, problem, rows, rows).bytes;
  });
}

void attend(const AttentionProblem& problem, const AttentionUnit& unit, void* scratch) {
  with_storage(problem.dtype, [&]<class Storage>(Storage) { Unit<Storage>(problem, unit, scratch).run(); });
}

void reduce(const AttentionProblem& problem, int64_t row, int64_t head) {
  with_storage(problem.dtype, [&]<class Storage>(Storage) { reduce_row<Storage>(problem, row, head); });
}

}  // namespace

extern const AttentionKernels attention_kernels = {scratch_bytes, attend, reduce};

}  // namespace atk::ATK_ISA
