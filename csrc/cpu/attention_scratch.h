// What a unit of work keeps while it runs, carved out of one block of memory.
#pragma once

#include <type_traits>

#include "cpu/attention.h"
#include "cpu/attention_pack.h"
#include "cpu/attention_softmax.h"

namespace atk::ATK_ISA {

// Where one head's K and V of a tile's tokens lie.
template <class Storage>
struct TileRows {
  const Storage *k[kMaxTile], *v[kMaxTile];
  int64_t count;
};

// Tokens [begin, end) of an item, at most kMaxTile.
template <class Storage>
inline void find_rows(const AttentionProblem& x, const Item& item, int64_t head, int64_t begin, int64_t end,
                      TileRows<Storage>& rows) {
  const auto* k = static_cast<const Storage*>(x.k) + head * x.k_layout.head_stride;
  const auto* v = static_cast<const Storage*>(x.v) + head * x.v_layout.head_stride;
  const int64_t page_size = x.k_layout.page_size;
  rows.count = end - begin;
  int64_t index = page_of(item.offset + begin, page_size), offset = offset_of(item.offset + begin, page_size);
  for (int64_t t = 0; t < rows.count; ++index, offset = 0) {
    const int64_t page = x.pages[item.page_begin + index];
    const Storage* k_row = k + page * x.k_layout.page_stride + offset * x.k_layout.slot_stride;
    const Storage* v_row = v + page * x.v_layout.page_stride + offset * x.v_layout.slot_stride;
    for (; t < rows.count && offset < page_size; ++t, ++offset) {
      rows.k[t] = k_row;
      rows.v[t] = v_row;
      k_row += x.k_layout.slot_stride;
      v_row += x.v_layout.slot_stride;
    }
  }
}

// Carves one unit's scratch out of a block; run over a null block it only counts the bytes.
template <class Storage>
struct Scratch {
  float *q, *o;              // [heads, M, dwords(D)], [heads, M, Dv rounded up to W]
  float *k, *v;              // a tile of one head, packed (attention_pack.h)
  float *s, *p;              // a block's scores and probabilities [kMaxRows, tile]
  RowState* rows;            // [heads, M]
  uint64_t* visible;         // [M]: the current tile's tokens that a row sees
  int32_t *begin, *end;      // [entries]: the tokens an entry sees, after the window
  TileRows<Storage>* tiles;  // [3]: the current and the next tile's first head; the head at hand
  Storage* zeros;            // a K or V row
  size_t bytes = 0;

  Scratch(void* block, const AttentionProblem& x, const AttentionUnit& unit) {
    char* const base = static_cast<char*>(block);
    const auto take = [&](auto*& to, int64_t count) {
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(base + bytes);
      bytes += round_up(count * static_cast<int64_t>(sizeof(*to)), 64);
    };
    const int64_t entries = unit.entry_end - unit.entry_begin, M = entries * x.group(), rows_of_heads = unit.heads * M;
    const int64_t depth = dwords<Storage>(x.D), columns = round_up(x.Dv, W), tile = tile_tokens(depth);
    take(q, rows_of_heads * depth);
    take(o, rows_of_heads * columns);
    take(k, depth * tile);
    take(v, dwords<Storage>(tile) * columns);
    take(s, kMaxRows * tile);
    take(p, kMaxRows * tile);
    take(rows, rows_of_heads);
    take(visible, M);
    take(begin, entries);
    take(end, entries);
    take(tiles, 3);
    take(zeros, x.D > x.Dv ? x.D : x.Dv);
  }
};

}  // namespace atk::ATK_ISA
