#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "common/philox.h"
#include "common/slots.h"
#include "cpu/ops.h"
#include "cpu/sample_rows.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kRunsPerDraw = 32;  // of one row, as many as a thread takes at a time

template <class T>
T at(const View& view, int64_t row) {
  return view.as<const T>()[row];
}

template <class T>
void check_rows(const std::string& name, const View& view, const char* expected, bool (*in_range)(T)) {
  for (int64_t row = 0; row < view.shape[0]; ++row)
    if (const T value = at<T>(view, row); !in_range(value))
      fail(name + "[" + std::to_string(row) + "]", expected, std::to_string(value));
}

// What is noted of a row's runs.
struct Notes {
  std::vector<uint32_t> peaks;   // key of the largest logit
  std::vector<uint64_t> sums;    // of the weights that are kept
  std::vector<uint32_t> ranked;  // peaks once more, partly sorted
};

Notes& notes_of_this_thread(int64_t runs) {
  thread_local Notes notes;
  notes.peaks.resize(runs);
  notes.sums.resize(runs);
  return notes;
}

struct Row {
  const SampleKernels::Typed& kernels;
  const char* logits;
  int64_t V, size;  // tokens, bytes of one
  float temperature;
  Notes& notes;
  bool shared;  // among the threads, run by run
  float max = 0.0f;
  Kept kept = {};

  int64_t runs() const { return ceil_div(V, kRun); }

  LogitRun run(int64_t r) const {
    const int64_t first = r * kRun;
    return {.logits = logits + first * size,
            .first = static_cast<int32_t>(first),
            .n = static_cast<int32_t>(std::min<int64_t>(kRun, V - first)),
            .max = max,
            .temperature = temperature};
  }

  float logit(int64_t v) const { return float_of(kernels.peak(logits + v * size, 1).key); }

  template <class Fn>
  void each_run(const Fn& fn) const {
    if (shared) return parallel_for(runs(), kRunsPerDraw, fn);
    for (int64_t r = 0; r < runs(); ++r) fn(r);
  }
};

// Whether there is a largest logit that is finite, and no NaN.
bool find_max(Row& row) {
  std::atomic<bool> nan = false;
  row.each_run([&](int64_t r) {
    const LogitRun run = row.run(r);
    const SampleKernels::Peak peak = row.kernels.peak(run.logits, run.n);
    row.notes.peaks[r] = peak.key;
    if (std::isnan(std::bit_cast<float>(peak.magnitude))) nan = true;
  });
  row.max = nan ? std::numeric_limits<float>::quiet_NaN() : float_of(*std::ranges::max_element(row.notes.peaks));
  return std::isfinite(row.max);
}

// The weight of what `kept` holds, noted run by run.
uint64_t weigh(const Row& row, const Kept& kept) {
  const uint32_t lowest = key_of(kept.lowest);
  row.each_run(
      [&](int64_t r) { row.notes.sums[r] = row.notes.peaks[r] < lowest ? 0 : row.kernels.weigh(row.run(r), kept); });
  uint64_t total = 0;
  for (const uint64_t sum : row.notes.sums) total += sum;
  return total;
}

// The first token whose weight, with all before it, is more than `drawn`, which is less than the total just noted.
int64_t find_drawn(const Row& row, uint64_t drawn) {
  uint64_t before = 0;
  int64_t r = 0;
  while (before + row.notes.sums[r] <= drawn) before += row.notes.sums[r++];
  return row.kernels.find(row.run(r), row.kept, before, drawn);
}

// The token that is the nth, from 1 on, with exactly this logit.
int32_t find_equal(const Row& row, float logit, uint64_t nth) {
  const uint32_t key = key_of(logit);
  for (int64_t r = 0;; ++r) {
    if (row.notes.peaks[r] < key) continue;
    const LogitRun run = row.run(r);
    const uint64_t here = row.kernels.count(run, logit);
    for (int32_t v = run.first; here >= nth; ++v)
      if (row.logit(v) == logit && --nth == 0) return v;
    nth -= here;
  }
}

// Keeps tokens in their order, larger logits first, then lower indices, until their number (or weight) is `target`.
// Only runs with a logit of key `bound` are read: what has at least this key reaches the target.
void keep_first(Row& row, uint64_t target, bool weighed, uint32_t bound) {
  const auto add_digits = weighed ? row.kernels.weigh_digits : row.kernels.count_digits;
  uint64_t bins[kBins];
  uint32_t prefix = 0, bin = 0;
  for (int digit = 0; digit < kDigits; ++digit) {
    std::ranges::fill(bins, 0);
    for (int64_t r = 0; r < row.runs(); ++r)
      if (row.notes.peaks[r] >= bound) add_digits(row.run(r), row.kept, bins, prefix, digit);
    for (bin = kBins - 1; bins[bin] < target; --bin) target -= bins[bin];
    prefix |= bin << shift_of(digit);
  }
  const float lowest = float_of(prefix);
  const LogitRun one = {.logits = nullptr, .first = 0, .n = 0, .max = row.max, .temperature = row.temperature};
  const uint64_t each = weighed ? row.kernels.weight(one, lowest) : 1;  // of the logits at the border
  const uint64_t enough = (target + each - 1) / each;
  if (enough * each == bins[bin])  // all of them; those of the filter before, if it ended there too
    row.kept = {.lowest = lowest, .last = row.kept.lowest == lowest ? row.kept.last : kLastToken};
  else
    row.kept = {.lowest = lowest, .last = find_equal(row, lowest, enough)};
}

// A key that at least k tokens reach: each of the k runs with the largest logits has one.
uint32_t top_k_bound(const Row& row, int64_t k) {
  if (k > row.runs()) return 0;
  std::vector<uint32_t>& ranked = row.notes.ranked = row.notes.peaks;
  std::ranges::nth_element(ranked, ranked.begin() + (k - 1), std::greater());
  return ranked[k - 1];
}

// A key such that the tokens that reach it weigh at least `target`: found by trial, as few tokens weigh most.
uint32_t top_p_bound(const Row& row, uint64_t target) {
  for (const float distance : {2.0f, 4.0f, 8.0f}) {
    const float lowest = row.max - distance * row.temperature;
    if (lowest <= row.kept.lowest) break;
    if (weigh(row, {.lowest = lowest}) >= target) return key_of(lowest);
  }
  return key_of(row.kept.lowest);
}

// Applies the filters and returns the weight of what they leave; `total` is that of all tokens, just noted.
uint64_t filter(Row& row, uint64_t total, int64_t top_k, float top_p, float min_p) {
  if (0 < top_k && top_k < row.V) {
    keep_first(row, top_k, false, top_k_bound(row, top_k));
    total = weigh(row, row.kept);
  }
  if (top_p < 1.0f) {
    const uint64_t target = top_p_weight(top_p, total);
    keep_first(row, target, true, top_p_bound(row, target));
  }
  row.kept.least = min_p_weight(min_p);
  return top_p < 1.0f || min_p > 0.0f ? weigh(row, row.kept) : total;
}

void check_values(const Sample& a) {
  check_rows<float>("temperature", a.temperature, "a finite value >= 0", is_temperature);
  check_rows<int32_t>("top_k", a.top_k, "a value >= 0 (0: all)", is_top_k);
  check_rows<float>("top_p", a.top_p, "a value in (0, 1]", is_top_p);
  check_rows<float>("min_p", a.min_p, "a value in [0, 1]", is_min_p);
}

}  // namespace

void sample(const Sample& a) {
  const Sizes sizes = a.check();
  check_values(a);

  const SampleKernels::Typed& kernels = sample_kernels().of(a.logits.dtype);
  const int64_t N = sizes["N"], V = sizes["V"], size = element_size(a.logits.dtype);
  const bool shared = N < num_threads();
  const auto draw = [&](int64_t n) {
    const float temperature = at<float>(a.temperature, n);
    Row row = {.kernels = kernels,
               .logits = a.logits.as<const char>() + n * a.logits.strides[0] * size,
               .V = V,
               .size = size,
               .temperature = temperature == 0.0f ? 1.0f : temperature,
               .notes = notes_of_this_thread(ceil_div(V, kRun)),
               .shared = shared};
    int64_t& token = a.tokens.as<int64_t>()[n];
    float& logprob = a.logprobs.as<float>()[n];
    if (!find_max(row)) {
      token = -1;
      logprob = row.max;
      return;
    }
    const uint64_t all = weigh(row, row.kept);
    if (temperature == 0.0f) {
      token = find_equal(row, row.max, 1);
    } else {
      const uint64_t total = filter(row, all, at<int32_t>(a.top_k, n), at<float>(a.top_p, n), at<float>(a.min_p, n));
      const uint64_t bits =
          random_53_bits(at<int64_t>(a.seeds, n), at<int64_t>(a.agents, n), at<int64_t>(a.positions, n));
      token = find_drawn(row, drawn_weight(bits, total));
    }
    logprob = log_probability(row.logit(token), row.max, row.temperature, all);
  };
  if (shared)
    for (int64_t n = 0; n < N; ++n) draw(n);
  else
    parallel_for(N, 1, draw);
  for (int64_t n = 0; n < N; ++n)
    if (at<int64_t>(a.tokens, n) < 0)
      fail("logits", "finite values",
           "maximum " + std::to_string(at<float>(a.logprobs, n)) + " in row " + std::to_string(n));
}

}  // namespace atk
