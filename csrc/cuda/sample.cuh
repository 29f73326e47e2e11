// sample on the device: a block for each row, which stays in L2 while the block goes over it again: for the maximum,
// for the sum of weights, and for each filter once a digit. All that is decided is decided on integers
// (common/sample_draw.h).
#pragma once

#include "common/philox.h"
#include "cuda/launch.h"
#include "cuda/sample_row.cuh"

namespace atk::cuda {

struct SampleJob {
  const void* logits;
  int64_t row_stride;
  const int64_t *seeds, *agents, *positions;  // these and below [N], contiguous
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p;
  int64_t* tokens;
  float* logprobs;
  int32_t V, chunk;  // tokens of a row and of a chunk, see chunk_of()
};

// Keeps tokens in their order, larger logits first, then lower indices, until their number (or weight) is `target`.
template <bool weighed, class T, int kWord>
__device__ __forceinline__ void keep_first(SampleShared& shared, const LogitRow<T, kWord>& row, Kept& kept,
                                           uint64_t target) {
  constexpr int kBinsEach = kBins / kSampleThreads;
  const auto sum_of = [&](int32_t bin) { return static_cast<uint64_t>(shared.high[bin]) << 32 | shared.low[bin]; };
  uint32_t prefix = 0;
  uint64_t here = 0;
#pragma unroll 1
  for (int digit = 0; digit < kDigits; ++digit) {
    for (int bin = threadIdx.x; bin < kBins; bin += kSampleThreads) shared.low[bin] = shared.high[bin] = 0;
    sync_block();
    const uint32_t mask = mask_above(digit);
    row.visit([&](float x, int32_t v) {
      const uint32_t key = key_of(x);
      if (!kept.has(x, v) || ((key ^ prefix) & mask) != 0) return;
      const uint32_t bin = digit_of(key, digit);
      const uint64_t added = weighed ? row.weight(x) : 1;
      const uint32_t low = static_cast<uint32_t>(added);
      const uint32_t before = atomicAdd(&shared.low[bin], low);
      const uint32_t high = static_cast<uint32_t>(added >> 32) + (before + low < before);  // with the carry
      if (high != 0) atomicAdd(&shared.high[bin], high);
    });
    sync_block();
    // A thread has kBinsEach bins, the first thread the uppermost.
    uint64_t mine = 0;
    for (int i = 0; i < kBinsEach; ++i) mine += sum_of(kBins - 1 - kBinsEach * static_cast<int>(threadIdx.x) - i);
    const Crossing crossing = cross(shared, mine, [&](uint64_t) { return target - 1; });
    target -= crossing.before;
    int32_t bin = kBins - 1 - kBinsEach * crossing.thread;
    for (; sum_of(bin) < target; --bin) target -= sum_of(bin);
    here = sum_of(bin);
    prefix |= static_cast<uint32_t>(bin) << shift_of(digit);
    sync_block();  // before the bins are cleared
  }
  const float lowest = float_of(prefix);
  const uint64_t each = weighed ? row.weight(lowest) : 1;  // of the logits at the border
  const uint64_t enough = (target + each - 1) / each;
  if (enough * each == here) {  // all of them; those of the filter before, if it ended there too
    kept = {lowest, kept.lowest == lowest ? kept.last : kLastToken, 0};
    return;
  }
  const auto equal = [&](float x, int32_t) { return uint64_t{x == lowest}; };
  row.sum_chunks(shared, equal);
  kept = {lowest, row.find(shared, equal, [&](uint64_t) { return enough - 1; }), 0};
}

// Whether there is a largest logit that is finite, and no NaN.
template <class T, int kWord>
__device__ __forceinline__ bool find_max(SampleShared& shared, LogitRow<T, kWord>& row) {
  uint32_t key = 0;
  bool nan = false;
  row.visit([&](float x, int32_t) {
    const uint32_t mine = key_of(x);
    key = mine > key ? mine : key;
    nan |= x != x;
  });
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const uint32_t other = shuffle_xor(key, mask);
    key = other > key ? other : key;
  }
  if (threadIdx.x % kWarp == 0) shared.warps[threadIdx.x / kWarp] = key;
  nan = any_of_block(nan);
  for (int w = 0; w < kWarps; ++w) key = shared.warps[w] > key ? static_cast<uint32_t>(shared.warps[w]) : key;
  sync_block();
  const float max = float_of(key);
  row.max = max;
  return !nan && max < kInfinity && max > -kInfinity;
}

// The token of row n, and the weight of all tokens before the filters.
template <class T, int kWord>
__device__ __forceinline__ int32_t draw_token(SampleShared& shared, const LogitRow<T, kWord>& row, const SampleJob& job,
                                              int64_t n, uint64_t& all) {
  row.sum_chunks(shared, [&](float x, int32_t) { return row.weight(x); });
  all = row.total(shared);
  if (job.temperature[n] == 0.0f) {
    const auto equal = [&](float x, int32_t) { return uint64_t{x == row.max}; };
    row.sum_chunks(shared, equal);
    return row.find(shared, equal, [](uint64_t) { return uint64_t{0}; });
  }
  const float top_p = job.top_p[n];
  Kept kept;
  const auto weight = [&](float x, int32_t v) {
    const uint64_t mine = kept.has(x, v) ? row.weight(x) : 0;
    return mine >= kept.least ? mine : 0;
  };
  uint64_t total = all;
  if (const int32_t top_k = job.top_k[n]; top_k > 0 && top_k < row.V) {
    keep_first<false>(shared, row, kept, top_k);
    row.sum_chunks(shared, weight);
    total = row.total(shared);
  }
  if (top_p < 1.0f) keep_first<true>(shared, row, kept, top_p_weight(top_p, total));
  kept.least = min_p_weight(job.min_p[n]);
  if (top_p < 1.0f || kept.least > 0) row.sum_chunks(shared, weight);
  const uint64_t bits = random_53_bits(job.seeds[n], job.agents[n], job.positions[n]);
  return row.find(shared, weight, [&](uint64_t sum) { return drawn_weight(bits, sum); });
}

// Token -1 and NaN where the logits have no finite maximum or a value is out of its range: the host cannot see it
// without a sync.
template <class T, int kWord>
__global__ void __launch_bounds__(kSampleThreads, 1)  // one block of it: else 64 registers, and spills
    sample_rows(const __grid_constant__ SampleJob job) {
  SampleShared& shared = *reinterpret_cast<SampleShared*>(shared_memory());
  const int64_t n = blockIdx.x;
  const float temperature = job.temperature[n];
  LogitRow<T, kWord> row = {static_cast<const T*>(job.logits) + n * job.row_stride, job.V, job.chunk, 0.0f,
                            temperature == 0.0f ? 1.0f : temperature};
  uint64_t all = 0;
  int32_t token = -1;
  if (is_temperature(temperature) && is_top_k(job.top_k[n]) && is_top_p(job.top_p[n]) && is_min_p(job.min_p[n]) &&
      find_max(shared, row))
    token = draw_token(shared, row, job, n, all);
  if (threadIdx.x != 0) return;
  job.tokens[n] = token;
  job.logprobs[n] = token < 0 ? NAN : log_probability(to_float(row.logits[token]), row.max, row.temperature, all);
}

}  // namespace atk::cuda
