// Compiled once per instruction set: plain loops over columns, which the compiler vectorises for it. The state is read
// from memory once and written once: what a block of columns needs a second time lies in the caches by then.
#include "cpu/delta_rule.h"

namespace atk::ATK_ISA {
namespace {

constexpr int kBlock = 128;  // columns at a time
constexpr int kLevels = 4;

int ceil_log2(int64_t x) {
  int bits = 1;
  while ((int64_t{1} << bits) < x) ++bits;
  return bits;
}

// Sums over rows in the order of torch's sum over an outer dimension (aten/src/ATen/native/cpu/SumKernel.cpp): `Chains`
// chains of every so many-th row, and sums of sums in four levels against rounding. add(i, to) adds what row i gives to
// its sums. The result is in acc[0][0].
template <int Chains, class Add>
void sum_rows(int64_t K, int64_t n, float (&acc)[kLevels][Chains][kBlock], const Add& add) {
  for (auto& level : acc)
    for (auto& chain : level)
      for (int64_t c = 0; c < n; ++c) chain[c] = 0.0f;
  const int64_t steps = K / Chains;
  const int power = ceil_log2(steps) / kLevels > 4 ? ceil_log2(steps) / kLevels : 4;
  const int64_t step = int64_t{1} << power, mask = step - 1;
  int64_t i = 0;
  while (i + step <= steps) {
    for (int64_t j = 0; j < step; ++j, ++i)
      for (int chain = 0; chain < Chains; ++chain) add(i * Chains + chain, acc[0][chain]);
    for (int level = 1; level < kLevels; ++level) {
      for (int chain = 0; chain < Chains; ++chain)
        for (int64_t c = 0; c < n; ++c) {
          acc[level][chain][c] += acc[level - 1][chain][c];
          acc[level - 1][chain][c] = 0.0f;
        }
      if (i & (mask << (level * power))) break;
    }
  }
  for (; i < steps; ++i)
    for (int chain = 0; chain < Chains; ++chain) add(i * Chains + chain, acc[0][chain]);
  for (int level = 1; level < kLevels; ++level)
    for (int chain = 0; chain < Chains; ++chain)
      for (int64_t c = 0; c < n; ++c) acc[0][chain][c] += acc[level][chain][c];
  for (int64_t row = steps * Chains; row < K; ++row) add(row, acc[0][0]);
  for (int chain = 1; chain < Chains; ++chain)
    for (int64_t c = 0; c < n; ++c) acc[0][0][c] += acc[0][chain][c];
}

struct Row {
  float* state;
  const float *decay, *q, *k, *v;
  float* out;
  float beta;
  int64_t decay_stride, K, V;
};

// Columns [begin, begin + n).
template <int Chains>
void columns(const Row& a, int64_t begin, int64_t n) {
  float acc[kLevels][Chains][kBlock], delta[kBlock];
  sum_rows<Chains>(a.K, n, acc, [&](int64_t i, float* __restrict to) {
    const float* __restrict s = a.state + i * a.V + begin;
    const float decay = a.decay[i * a.decay_stride], k = a.k[i];
    for (int64_t c = 0; c < n; ++c) to[c] += s[c] * decay * k;
  });
  for (int64_t c = 0; c < n; ++c) delta[c] = (a.v[begin + c] - acc[0][0][c]) * a.beta;
  sum_rows<Chains>(a.K, n, acc, [&](int64_t i, float* __restrict to) {
    float* __restrict s = a.state + i * a.V + begin;
    const float decay = a.decay[i * a.decay_stride], k = a.k[i], q = a.q[i];
    for (int64_t c = 0; c < n; ++c) {
      const float decayed = s[c] * decay;
      const float added = k * delta[c];
      const float updated = decayed + added;
      s[c] = updated;
      to[c] += updated * q;
    }
  });
  for (int64_t c = 0; c < n; ++c) a.out[begin + c] = acc[0][0][c];
}

template <int Chains>
void all_columns(const Row& a, int64_t begin, int64_t end) {
  for (; begin + kBlock <= end; begin += kBlock) columns<Chains>(a, begin, kBlock);
  if (begin < end) columns<Chains>(a, begin, end - begin);
}

void run(float* state, const float* decay, int64_t decay_stride, const float* q, const float* k, const float* v,
         float beta, float* out, int64_t K, int64_t V, int64_t plain) {
  const Row row = {.state = state,
                   .decay = decay,
                   .q = q,
                   .k = k,
                   .v = v,
                   .out = out,
                   .beta = beta,
                   .decay_stride = decay_stride,
                   .K = K,
                   .V = V};
  all_columns<1>(row, 0, plain);
  all_columns<4>(row, plain, V);
}

}  // namespace

extern const DeltaRuleKernel delta_rule_kernel = {run};

}  // namespace atk::ATK_ISA
