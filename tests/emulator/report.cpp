// Errors in words.
#include <cstring>
#include <string_view>

#include "chip.h"

namespace atk::emulator {

std::string spell(const Place& place) {
  std::string_view file = place.file_name();
  return std::string(file) + ":" + std::to_string(place.line());
}

std::string spell(const uint3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

bool same(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

static bool together(const Fiber& a, const Fiber& b) {
  return a.state == b.state && (a.state == State::returned || same(a.place, b.place));
}

// "0-3 at shuffle (file:1), 4-31 returned"
static std::string where(unsigned first, unsigned count) {
  std::string text;
  for (unsigned i = 0; i < count;) {
    const Fiber& fiber = chip.fibers[first + i];
    unsigned end = i + 1;
    while (end < count && together(fiber, chip.fibers[first + end])) ++end;
    text += (i ? ", " : "") + std::to_string(i) + (end - i > 1 ? "-" + std::to_string(end - 1) : "");
    text += fiber.state == State::returned ? " returned"
                                           : std::string(" at ") + fiber.what + " (" + spell(fiber.place) + ")";
    i = end;
  }
  return text;
}

std::string stuck() {
  for (unsigned first = 0; first < chip.grid->threads; first += kLanes)
    for (unsigned lane = 0; lane < kLanes; ++lane)
      if (chip.fibers[first + lane].state == State::at_warp)
        return "not all lanes of warp " + std::to_string(first / kLanes) + " reach one place: lanes " +
               where(first, kLanes);
  return "not all threads of the block reach one barrier: threads " + where(0, chip.grid->threads);
}

}  // namespace atk::emulator
