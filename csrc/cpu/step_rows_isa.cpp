// Compiled once per instruction set: plain loops which the compiler vectorises for it. Each operation rounds as torch's
// own does, one by one.
#include <cmath>

#include "common/dtype.h"
#include "cpu/step_rows.h"

namespace atk::ATK_ISA {
namespace {

int ceil_log2(int64_t x) {
  int bits = 1;
  while ((int64_t{1} << bits) < x) ++bits;
  return bits;
}

// The sum of x_i^2 in the order of torch's sum over a contiguous row (aten/src/ATen/native/cpu/SumKernel.cpp): L lanes,
// four chains of them, and sums of sums in four levels against rounding.
template <class T, int L>
float sum_of_squares(const T* __restrict x, int64_t I) {
  constexpr int kChains = 4, kLevels = 4;
  const int64_t vectors = I / L, steps = vectors / kChains;
  const int power = ceil_log2(steps) / kLevels > 4 ? ceil_log2(steps) / kLevels : 4;
  const int64_t step = int64_t{1} << power, mask = step - 1;
  float acc[kLevels][kChains][L] = {};
  const auto add_vector = [&](float* __restrict to, const T* __restrict from) {
    for (int lane = 0; lane < L; ++lane) {
      const float value = to_float(from[lane]);
      to[lane] += value * value;
    }
  };
  int64_t i = 0;
  while (i + step <= steps) {
    for (int64_t j = 0; j < step; ++j, ++i)
      for (int chain = 0; chain < kChains; ++chain) add_vector(acc[0][chain], x + (i * kChains + chain) * L);
    for (int level = 1; level < kLevels; ++level) {
      for (int chain = 0; chain < kChains; ++chain)
        for (int lane = 0; lane < L; ++lane) {
          acc[level][chain][lane] += acc[level - 1][chain][lane];
          acc[level - 1][chain][lane] = 0.0f;
        }
      if (i & (mask << (level * power))) break;
    }
  }
  for (; i < steps; ++i)
    for (int chain = 0; chain < kChains; ++chain) add_vector(acc[0][chain], x + (i * kChains + chain) * L);
  for (int level = 1; level < kLevels; ++level)
    for (int chain = 0; chain < kChains; ++chain)
      for (int lane = 0; lane < L; ++lane) acc[0][chain][lane] += acc[level][chain][lane];
  for (int64_t v = steps * kChains; v < vectors; ++v) add_vector(acc[0][0], x + v * L);
  for (int chain = 1; chain < kChains; ++chain)
    for (int lane = 0; lane < L; ++lane) acc[0][0][lane] += acc[0][chain][lane];
  float sum = 0.0f;
  for (int64_t k = vectors * L; k < I; ++k) sum += to_float(x[k]) * to_float(x[k]);
  for (int lane = 0; lane < L; ++lane) sum += acc[0][0][lane];
  return sum;
}

template <class T>
void norm(const void* from, const void* by, void* to, int64_t I, float eps, int lanes, bool wide, float offset) {
  const T* __restrict x = static_cast<const T*>(from);
  const T* __restrict weight = static_cast<const T*>(by);
  T* __restrict y = static_cast<T*>(to);
  const float sum = lanes == 16 ? sum_of_squares<T, 16>(x, I) : sum_of_squares<T, 8>(x, I);
  const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(I) + eps);
  if (wide && offset != 0.0f) {  // a weight plus 0 could change its sign
    for (int64_t i = 0; i < I; ++i) y[i] = from_float<T>(to_float(x[i]) * inverse * (to_float(weight[i]) + offset));
    return;
  }
  if (wide) {
    for (int64_t i = 0; i < I; ++i) y[i] = from_float<T>(to_float(x[i]) * inverse * to_float(weight[i]));
    return;
  }
  for (int64_t i = 0; i < I; ++i) {
    const T scaled = from_float<T>(to_float(x[i]) * inverse);
    y[i] = from_float<T>(to_float(weight[i]) * to_float(scaled));
  }
}

template <class T>
void l2_norm(const void* from, float* __restrict y, int64_t I, float eps, float divisor, int lanes) {
  const T* __restrict x = static_cast<const T*>(from);
  const float sum = lanes == 16 ? sum_of_squares<T, 16>(x, I) : sum_of_squares<T, 8>(x, I);
  const float inverse = 1.0f / std::sqrt(sum + eps);
  for (int64_t i = 0; i < I; ++i) y[i] = to_float(x[i]) * inverse;
  if (divisor == 1.0f) return;
  for (int64_t i = 0; i < I; ++i) y[i] /= divisor;
}

template <class T>
float rounded(float x) {
  return to_float(from_float<T>(x));
}

template <class T>
void rotate(const void* from, const void* cosines, const void* sines, void* to, int64_t D) {
  const T* __restrict x = static_cast<const T*>(from);
  const T* __restrict cos = static_cast<const T*>(cosines);
  const T* __restrict sin = static_cast<const T*>(sines);
  T* __restrict y = static_cast<T*>(to);
  const int64_t half = D / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = to_float(x[i]), b = to_float(x[half + i]);
    y[i] = from_float<T>(rounded<T>(a * to_float(cos[i])) + rounded<T>(-b * to_float(sin[i])));
    y[half + i] = from_float<T>(rounded<T>(b * to_float(cos[half + i])) + rounded<T>(a * to_float(sin[half + i])));
  }
}

template <class T>
void gate(const void* given, const void* other, const void* values, void* to, int64_t I) {
  const T* __restrict g = static_cast<const T*>(given);
  const T* __restrict up = static_cast<const T*>(other);
  const T* __restrict table = static_cast<const T*>(values);
  T* __restrict y = static_cast<T*>(to);
  for (int64_t i = 0; i < I; ++i) y[i] = from_float<T>(to_float(table[g[i].bits]) * to_float(up[i]));
}

template <class T>
void gate_wide(const void* from, const void* given, const float* __restrict table, void* to, int64_t I) {
  const T* __restrict x = static_cast<const T*>(from);
  const T* __restrict g = static_cast<const T*>(given);
  T* __restrict y = static_cast<T*>(to);
  for (int64_t i = 0; i < I; ++i) y[i] = from_float<T>(to_float(x[i]) * table[g[i].bits]);
}

template <class T>
void add(const void* left, const void* right, void* to, int64_t I) {
  const T* __restrict a = static_cast<const T*>(left);
  const T* __restrict b = static_cast<const T*>(right);
  T* __restrict y = static_cast<T*>(to);
  for (int64_t i = 0; i < I; ++i) y[i] = from_float<T>(to_float(a[i]) + to_float(b[i]));
}

}  // namespace

extern const StepRowKernels step_row_kernels = {
    {norm<float>, l2_norm<float>, rotate<float>, nullptr, nullptr, add<float>},
    {norm<bf16>, l2_norm<bf16>, rotate<bf16>, gate<bf16>, gate_wide<bf16>, add<bf16>},
    {norm<f16>, l2_norm<f16>, rotate<f16>, gate<f16>, gate_wide<f16>, add<f16>},
};

}  // namespace atk::ATK_ISA
