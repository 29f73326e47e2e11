// Slot, page and chunk arithmetic, and the rows of a step plan, shared by the CPU and the CUDA kernels.
//   slot = page * page_size + offset: the place of one token's K and V, the same in every layer.
#pragma once

#include <cstdint>

#include "common/hd.h"

namespace atk {

constexpr int64_t kNoSlot = -1;  // of a token that is padding

ATK_HD int64_t page_of(int64_t slot, int64_t page_size) {
  return slot / page_size;
}

ATK_HD int64_t offset_of(int64_t slot, int64_t page_size) {
  return slot % page_size;
}

ATK_HD int64_t slot_of(int64_t page, int64_t offset, int64_t page_size) {
  return page * page_size + offset;
}

ATK_HD int64_t ceil_div(int64_t n, int64_t divisor) {
  return (n + divisor - 1) / divisor;
}

// Where a layer's cache [P, S, H, D] keeps the row of (slot, head); strides in elements.
struct CacheLayout {
  int64_t page_size, page_stride, slot_stride, head_stride;

  ATK_HD int64_t row(int64_t slot, int64_t head) const {
    return page_of(slot, page_size) * page_stride + offset_of(slot, page_size) * slot_stride + head * head_stride;
  }
};

// A row of `items` [I, 6]: `length` consecutive tokens of one node, from in-page `offset` of pages[page_begin] on.
// `position` is the node position of the first token; an entry's shift is added to it.
struct Item {
  int32_t page_begin, offset, length, position, entry_begin, entry_end;
};

// A row of `entries` [E, 5]: row `row` sees the item's tokens [begin, end) and writes its partial result to `partial`.
struct Entry {
  int32_t row, begin, end, shift_index, partial;
};

// The slot of an item's token `t`, 0 <= t < item.length.
ATK_HD int64_t item_slot(const Item& item, const int32_t* pages, int64_t page_size, int64_t t) {
  const int64_t place = item.offset + t;
  return slot_of(pages[item.page_begin + page_of(place, page_size)], offset_of(place, page_size), page_size);
}

}  // namespace atk
