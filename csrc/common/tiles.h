// How work is cut into pieces for the blocks of a GPU: only arithmetic of indices, so a CPU tests it.
#pragma once

#include <cstdint>

#include "common/hd.h"
#include "common/slots.h"

namespace atk {

// A tile is M of the rows (entries x group) that see an item. Item i has its tiles from here on: items stand in the
// order of their entries, so each gets at least ceil(rows / M) of them and all are at most tile_bound(): known without
// looking at the plan, so that one launch serves every plan of these sizes.
ATK_HD int64_t first_tile(int64_t item, int64_t entry_begin, int64_t group, int64_t M) {
  return item + entry_begin * group / M;
}

ATK_HD int64_t tile_bound(int64_t items, int64_t entries, int64_t group, int64_t M) {
  return items + entries * group / M;
}

// A tile belongs to the last item that `begins` at it or before. Threads look for it together, each at one part
// [i, i + step) of the items that are left, [low, high): whether it is this thread's. Exactly one thread has it.
template <class Begins>
ATK_HD bool holds_tile(int64_t i, int64_t step, int64_t high, const Begins& begins) {
  return i < high && begins(i) && !(i + step < high && begins(i + step));
}

// Stages of a ring of `stage` bytes each in a block that needs `fixed` bytes besides, on a chip with `limit` bytes of
// shared memory for a block: so many that two blocks share a multiprocessor, at most `most`; 0 where not even one fits.
// Two stages where only one block fits: then one is loaded while the other is used.
ATK_HD int64_t ring_stages(int64_t fixed, int64_t stage, int64_t limit, int64_t most) {
  const int64_t shared = (limit / 2 - fixed) / stage;
  if (shared >= 2) return shared < most ? shared : most;
  const int64_t alone = (limit - fixed) / stage;
  return alone < 2 ? (alone < 0 ? 0 : alone) : 2;
}

// The splits [first, last) of `chunk` tokens that hold what the last token of a sequence sees; window 0: all.
struct SplitRange {
  int64_t first, last;
};

ATK_HD SplitRange split_range(int64_t length, int64_t window, int64_t chunk) {
  const int64_t begin = window > 0 && length > window ? length - window : 0;
  return {begin / chunk, ceil_div(length, chunk)};
}

// Rows of `units` pieces each, `heads` rows a token: piece `i` counted from row `first_row` on.
struct RowPiece {
  int64_t token, head;
  int32_t unit;
};

ATK_HD RowPiece row_piece(int64_t first_row, uint32_t i, uint32_t units, int64_t heads) {
  const uint32_t row = i / units;
  const int64_t at = first_row + row;
  const int64_t token = at / heads;
  return {token, at - token * heads, static_cast<int32_t>(i - row * units)};
}

// The two words of `n` elements that piece `unit` of a key turns: pairs [unit * n, unit * n + n). Half-split they lie
// R elements apart, pair j being (first[j], second[j]); interleaved they are neighbours, pair j being elements 2j and
// 2j + 1 of the two. Pieces from R / n on are single words of dims beyond 2R, which are not turned.
struct RopeWords {
  int64_t first, second;
};

ATK_HD RopeWords rope_words(int64_t unit, int64_t n, int64_t R, bool interleaved) {
  if (interleaved) return {2 * unit * n, (2 * unit + 1) * n};
  return {unit * n, R + unit * n};
}

ATK_HD int64_t rope_units(int64_t D, int64_t R, int64_t n) {
  return R / n + (D - 2 * R) / n;
}

ATK_HD int64_t unturned_word(int64_t unit, int64_t n, int64_t R) {
  return 2 * R + (unit - R / n) * n;
}

}  // namespace atk
