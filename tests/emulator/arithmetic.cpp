// The index arithmetic of csrc/common/tiles.h, for tests/kernels/test_shared_arithmetic.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/tiles.h"

PYBIND11_MODULE(arithmetic, module) {
  using namespace atk;
  module.def("tile_bound", &tile_bound);
  // As `threads` threads look for it; raises where not one alone finds it.
  module.def("item_of_tile",
             [](int64_t tile, const std::vector<int64_t>& entry_begins, int64_t group, int64_t M, int64_t threads) {
               int64_t low = 0, high = static_cast<int64_t>(entry_begins.size());
               const auto begins = [&](int64_t i) { return first_tile(i, entry_begins[i], group, M) <= tile; };
               while (high - low > 1) {
                 const int64_t step = ceil_div(high - low, threads), start = low;
                 int finders = 0;
                 for (int64_t thread = 0; thread < threads; ++thread)
                   if (const int64_t i = start + thread * step; holds_tile(i, step, high, begins)) low = i, ++finders;
                 if (finders != 1) throw std::runtime_error(std::to_string(finders) + " threads found the item");
                 high = std::min(high, low + step);
               }
               return std::pair(low, tile - first_tile(low, entry_begins[low], group, M));
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
