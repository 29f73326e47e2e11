// Probes of what a machine can do, built for this machine by limits.py. Each runs once on the calling thread; limits.py
// runs one on every core at once and takes the time.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

// 12 independent chains hide the latency of a multiply-add; the empty asm keeps them from being folded.
constexpr int kChains = 12;

template <class Vector, class MultiplyAdd>
void chains(int64_t steps, Vector zero, const MultiplyAdd& multiply_add) {
  Vector sums[kChains];
  for (auto& sum : sums) sum = zero;
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain) {
      sums[chain] = multiply_add(sums[chain]);
      asm volatile("" : "+v"(sums[chain]));
    }
  }
}

}  // namespace

// Operations done: a multiply-add counts as two.
extern "C" int64_t multiply_add_f32(int64_t steps) {
#if defined(__AVX512F__)
  const __m512 one = _mm512_set1_ps(1.0f);
  chains(steps, one, [&](__m512 sum) { return _mm512_fmadd_ps(one, one, sum); });
  return steps * kChains * 32;
#else
  const __m256 one = _mm256_set1_ps(1.0f);
  chains(steps, one, [&](__m256 sum) { return _mm256_fmadd_ps(one, one, sum); });
  return steps * kChains * 16;
#endif
}

extern "C" int64_t multiply_add_bf16(int64_t steps) {
#if defined(__AVX512BF16__)
  const auto one = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f803f80));
  chains(steps, _mm512_setzero_ps(), [&](__m512 sum) { return _mm512_dpbf16_ps(sum, one, one); });
  return steps * kChains * 64;
#else
  return multiply_add_f32(steps);
#endif
}

extern "C" int64_t read(const char* memory, int64_t bytes) {
  constexpr int kLine = 64;
  for (int64_t at = 0; at < bytes; at += kLine) asm volatile("" ::"r"(*reinterpret_cast<const int64_t*>(memory + at)));
  return bytes;
}

// Bytes read and written, as the C library copies them: around the caches where that is faster.
extern "C" int64_t copy(const char* from, char* to, int64_t bytes) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return 2 * bytes;
}
