// The index arithmetic of csrc/common/tiles.h, for tests/test_shared_arithmetic.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "common/tiles.h"

PYBIND11_MODULE(arithmetic, module) {
  using namespace atk;
  module.def("tile_bound", &tile_bound);
  module.def("item_of_tile", [](int64_t tile, const std::vector<int64_t>& entry_begins, int64_t group, int64_t M) {
    const auto items = static_cast<int64_t>(entry_begins.size());
    const int64_t item = item_of_tile(tile, items, group, M, [&](int64_t i) { return entry_begins[i]; });
    return std::pair(item, tile - first_tile(item, entry_begins[item], group, M));
  });
  module.def("ring_stages", &ring_stages);
  module.def("split_range", [](int64_t length, int64_t window, int64_t chunk) {
    const SplitRange range = split_range(length, window, chunk);
    return std::pair(range.first, range.last);
  });
  module.def("row_piece", [](int64_t first_row, uint32_t i, uint32_t units, int64_t heads) {
    const RowPiece piece = row_piece(first_row, i, units, heads);
    return std::tuple(piece.token, piece.head, piece.unit);
  });
  // The elements of a key that piece `unit` touches, in words of n; the first `turned` of them are turned in pairs.
  module.def("key_piece", [](int64_t unit, int64_t n, int64_t R, bool interleaved) {
    std::vector<int64_t> elements;
    const auto word = [&](int64_t first) {
      for (int64_t j = 0; j < n; ++j) elements.push_back(first + j);
    };
    if (unit >= R / n) {
      word(unturned_word(unit, n, R));
    } else {
      const RopeWords words = rope_words(unit, n, R, interleaved);
      word(words.first), word(words.second);
    }
    return elements;
  });
  module.def("rope_units", &rope_units);
}
