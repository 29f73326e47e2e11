#include "collectives.h"

#include <cstring>

#include "common/dtype.h"

namespace atk::emulator {
namespace {

struct Rows {
  uint32_t* out;
  const uint16_t* row;
};

template <bool transposed>
void carry_load(void* const* lanes) {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto element = [&](int row, int column) {
        return static_cast<uint32_t>(static_cast<const Rows*>(lanes[matrix * 8 + row])->row[column]);
      };
      const int major = lane / 4, minor = 2 * (lane % 4);
      static_cast<Rows*>(lanes[lane])->out[matrix] = transposed
                                                         ? element(minor, major) | element(minor + 1, major) << 16
                                                         : element(major, minor) | element(major, minor + 1) << 16;
    }
}

struct Product {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

template <class T>
double half_of(uint32_t both, int i) {
  return to_float(T{static_cast<uint16_t>(both >> 16 * i)});
}

template <class T>
void carry_multiply(void* const* lanes) {
  double a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto& mine = *static_cast<const Product*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      for (int part = 0; part < 4; ++part) a[g + part % 2 * 8][2 * t + part / 2 * 8 + i] = half_of<T>(mine.a[part], i);
      for (int part = 0; part < 2; ++part) b[2 * t + part * 8 + i][g] = half_of<T>(mine.b[part], i);
    }
  }
  for (int row = 0; row < 16; ++row) {
    const auto at = [&](int column) -> float& {
      return static_cast<const Product*>(lanes[row % 8 * 4 + column / 2])->c[row / 8 * 2 + column % 2];
    };
    double sum[8];
    for (int column = 0; column < 8; ++column) sum[column] = at(column);
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) sum[column] += a[row][k] * b[k][column];
    for (int column = 0; column < 8; ++column) at(column) = static_cast<float>(sum[column]);
  }
}

}  // namespace

void load_matrices(const char* what, uint32_t (&out)[4], const void* row, bool transposed, const Place& place) {
  check_shared(what, row, place);
  Rows mine = {out, static_cast<const uint16_t*>(row)};
  wait_for_warp(what, &mine, transposed ? carry_load<true> : carry_load<false>, place);
}

template <class T>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Place& place) {
  Product mine = {c, a, {b0, b1}};
  wait_for_warp("multiply", &mine, carry_multiply<T>, place);
}

template void multiply<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Place& place);
template void multiply<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Place& place);

}  // namespace atk::emulator
