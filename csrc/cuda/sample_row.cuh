// A row of logits in the hands of a block: sums over it, and the token at which a sum passes a limit. Sums are exact
// integers, so the order in which threads take the tokens does not matter.
#pragma once

#include "common/sample_draw.h"
#include "cuda/ptx.h"

namespace atk::cuda {

constexpr unsigned kSampleThreads = 512;
constexpr int kWarps = kSampleThreads / kWarp;
constexpr int kChunks = 256;  // of a row, at most

struct SampleShared {
  uint32_t low[kBins], high[kBins];  // halves of 64-bit sums: a 64-bit sum in shared memory would be a loop of retries
  uint64_t chunks[kChunks];
  uint64_t warps[kWarps];
  uint64_t before;
  int32_t found;
};

// Tokens that a warp sums up at a time: whole strides of its words, and at most kChunks of them in a row.
ATK_HD int32_t chunk_of(int32_t V, int32_t word) {
  const int32_t stride = kWarp * word;
  return (V + kChunks * stride - 1) / (kChunks * stride) * stride;
}

__device__ __forceinline__ uint64_t sum_of_warp(uint64_t value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// With those of the lanes before.
__device__ __forceinline__ uint64_t sum_up_to_lane(uint64_t value) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const uint64_t other = shuffle(value, (lane - distance) & (kWarp - 1));
    if (lane >= distance) value += other;
  }
  return value;
}

// The thread whose value, with those of all threads before, is more than `drawn(total)`; -1 if none.
struct Crossing {
  int32_t thread;
  uint64_t before, total;
};

template <class Drawn>
__device__ __forceinline__ Crossing cross(SampleShared& shared, uint64_t value, const Drawn& drawn) {
  const int warp = threadIdx.x / kWarp;
  uint64_t up_to = sum_up_to_lane(value), total = 0;
  if (threadIdx.x % kWarp == kWarp - 1) shared.warps[warp] = up_to;
  if (threadIdx.x == 0) shared.found = -1;
  sync_block();
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) up_to += total;
    total += shared.warps[w];
  }
  const uint64_t limit = drawn(total);
  if (up_to > limit && up_to - value <= limit) {
    shared.found = static_cast<int32_t>(threadIdx.x);
    shared.before = up_to - value;
  }
  sync_block();
  const Crossing crossing = {shared.found, shared.before, total};
  sync_block();  // before anybody writes there again
  return crossing;
}

// Logits come as words of kWord elements.
template <class T, int kWord>
struct LogitRow {
  struct alignas(kWord * sizeof(T)) Word {
    T x[kWord];
  };

  static constexpr int kAhead = kWord == 8 ? 2 : 4;  // words under way for each thread

  const T* logits;
  int32_t V, chunk;
  float max, temperature;

  // f(logit, token) for the words from `first` on, `step` tokens apart, below `end`.
  template <class F>
  __device__ __forceinline__ void visit(int32_t first, int32_t end, int32_t step, const F& f) const {
    for (int32_t v = first; v < end; v += kAhead * step) {
      Word words[kAhead] = {};
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (v + j * step < end) words[j] = *reinterpret_cast<const Word*>(logits + v + j * step);
#pragma unroll
      for (int j = 0; j < kAhead; ++j)
        if (v + j * step < end)
#pragma unroll
          for (int e = 0; e < kWord; ++e) f(to_float(words[j].x[e]), v + j * step + e);
    }
  }

  // Over the row, by all threads, in no order.
  template <class F>
  __device__ __forceinline__ void visit(const F& f) const {
    visit(threadIdx.x * kWord, V, kSampleThreads * kWord, f);
  }

  __device__ __forceinline__ uint64_t weight(float x) const { return weight_of(x, max, temperature); }

  // measure(logit, token) summed up chunk by chunk into shared.chunks.
  template <class Measure>
  __device__ __forceinline__ void sum_chunks(SampleShared& shared, const Measure& measure) const {
    for (int c = threadIdx.x / kWarp; c < kChunks; c += kWarps) {
      uint64_t sum = 0;
      const int32_t first = c * chunk, end = V - first < chunk ? V : first + chunk;
      visit(first + static_cast<int32_t>(threadIdx.x % kWarp) * kWord, end, kWarp * kWord,
            [&](float x, int32_t v) { sum += measure(x, v); });
      sum = sum_of_warp(sum);
      if (threadIdx.x % kWarp == 0) shared.chunks[c] = sum;
    }
    sync_block();
  }

  // Of what sum_chunks noted.
  __device__ __forceinline__ uint64_t total(SampleShared& shared) const {
    const uint64_t mine = threadIdx.x < kChunks ? shared.chunks[threadIdx.x] : 0;
    return cross(shared, mine, [](uint64_t all) { return all; }).total;
  }

  // The first token whose measure, with all before it, is more than drawn(total); after sum_chunks of the same measure.
  template <class Measure, class Drawn>
  __device__ __forceinline__ int32_t find(SampleShared& shared, const Measure& measure, const Drawn& drawn) const {
    const uint64_t mine = threadIdx.x < kChunks ? shared.chunks[threadIdx.x] : 0;
    const Crossing crossing = cross(shared, mine, drawn);
    if (crossing.thread < 0) return -1;
    const uint64_t limit = drawn(crossing.total);
    if (threadIdx.x < kWarp) find_in_chunk(shared, crossing, measure, limit);
    sync_block();
    const int32_t found = shared.found;
    sync_block();
    return found;
  }

 private:
  // By one warp.
  template <class Measure>
  __device__ __forceinline__ void find_in_chunk(SampleShared& shared, const Crossing& crossing, const Measure& measure,
                                                uint64_t limit) const {
    uint64_t before = crossing.before;
    for (int32_t first = crossing.thread * chunk; before <= limit; first += kWarp * kWord) {
      const int32_t mine = first + static_cast<int32_t>(threadIdx.x) * kWord;
      const auto visit_mine = [&](const auto& f) { visit(mine, mine < V ? mine + kWord : mine, kWarp * kWord, f); };
      uint64_t sum = 0;
      visit_mine([&](float x, int32_t v) { sum += measure(x, v); });
      const uint64_t up_to = sum_up_to_lane(sum) + before;
      uint64_t here = up_to - sum;
      if (here <= limit && up_to > limit)
        visit_mine([&](float x, int32_t v) {
          const uint64_t next = here + measure(x, v);
          if (here <= limit && next > limit) shared.found = v;
          here = next;
        });
      before = shuffle(up_to, kWarp - 1);
    }
  }
};

}  // namespace atk::cuda
