// Compiled once per instruction set: plain loops which the compiler vectorises for it.
#include "common/dtype.h"
#include "cpu/sample_rows.h"

namespace atk::ATK_ISA {
namespace {

template <class T>
SampleKernels::Peak peak(const void* logits, int64_t n) {
  const T* __restrict x = static_cast<const T*>(logits);
  uint32_t key = 0, magnitude = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float value = to_float(x[i]);
    const uint32_t mine = key_of(value), bits = std::bit_cast<uint32_t>(value) & 0x7fffffffu;
    key = mine > key ? mine : key;
    magnitude = bits > magnitude ? bits : magnitude;
  }
  return {key, magnitude};
}

template <class T>
uint64_t weigh(const LogitRun& run, const Kept& kept) {
  const T* __restrict x = static_cast<const T*>(run.logits);
  const float max = run.max, temperature = run.temperature;
  const Kept mine = kept;
  uint64_t sum = 0;
  for (int32_t i = 0; i < run.n; ++i) sum += mine.weight(to_float(x[i]), run.first + i, max, temperature);
  return sum;
}

template <class T>
int32_t find(const LogitRun& run, const Kept& kept, uint64_t before, uint64_t drawn) {
  const T* x = static_cast<const T*>(run.logits);
  for (int32_t i = 0; i < run.n; ++i) {
    before += kept.weight(to_float(x[i]), run.first + i, run.max, run.temperature);
    if (before > drawn) return run.first + i;
  }
  return -1;
}

template <class T, bool weighed>
void add_digits(const LogitRun& run, const Kept& kept, uint64_t* bins, uint32_t prefix, int digit) {
  const T* __restrict x = static_cast<const T*>(run.logits);
  const float max = run.max, temperature = run.temperature;
  const uint32_t mask = mask_above(digit);
  const int32_t n = run.n, first = run.first;
  const Kept mine = kept;
  uint64_t added[kRun];  // first all that vectorises
  for (int32_t i = 0; i < n; ++i) {
    const float value = to_float(x[i]);
    const bool counts = mine.has(value, first + i) & (((key_of(value) ^ prefix) & mask) == 0);
    const uint64_t each = weighed ? weight_of(value, max, temperature) : 1;
    added[i] = each & (uint64_t{0} - counts);
  }
  for (int32_t i = 0; i < n; ++i)
    if (added[i] != 0) bins[digit_of(key_of(to_float(x[i])), digit)] += added[i];
}

template <class T>
int32_t count(const LogitRun& run, float value) {
  const T* __restrict x = static_cast<const T*>(run.logits);
  int32_t found = 0;
  for (int32_t i = 0; i < run.n; ++i) found += to_float(x[i]) == value;
  return found;
}

uint64_t weight(const LogitRun& run, float value) {
  return weight_of(value, run.max, run.temperature);
}

template <class T>
constexpr SampleKernels::Typed kTyped = {peak<T>,  weigh<T>, find<T>, add_digits<T, false>, add_digits<T, true>,
                                         count<T>, weight};

}  // namespace

extern const SampleKernels sample_kernels = {kTyped<float>, kTyped<bf16>, kTyped<f16>};

}  // namespace atk::ATK_ISA
