#include "cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <exception>

namespace atk {
namespace {

// Per calling thread, as the thread count of OpenMP itself is.
thread_local GompParallel tls_run = nullptr;
thread_local int tls_threads = 1;

struct Loop {
  int64_t n, grain;
  detail::Body body;
  const void* fn;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error = nullptr;  // written by the one thread that set `failed`

  void work() noexcept {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= n) return;
      try {
        body(fn, begin, std::min(begin + grain, n));
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
        next.store(n, std::memory_order_relaxed);
        return;
      }
    }
  }
};

}  // namespace

void set_parallel(GompParallel run, int threads) {
  tls_run = run;
  tls_threads = run ? std::max(threads, 1) : 1;
}

int num_threads() {
  return tls_threads;
}

namespace detail {

void parallel_for(int64_t n, int64_t grain, Body body, const void* fn) {
  grain = std::max<int64_t>(grain, 1);
  if (tls_threads == 1 || n <= grain) {
    if (n > 0) body(fn, 0, n);
    return;
  }
  Loop loop{.n = n, .grain = grain, .body = body, .fn = fn};
  // Always torch's full team, as torch does itself: libgomp ends the threads that a smaller team leaves out, and the
  // next op would pay for starting them again. The region ends in a barrier: `loop` outlives all threads, `error` is
  // visible.
  tls_run([](void* data) { static_cast<Loop*>(data)->work(); }, &loop, static_cast<unsigned>(tls_threads), 0);
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace detail
}  // namespace atk
