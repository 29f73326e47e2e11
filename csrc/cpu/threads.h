// Threads are torch's own. Two OpenMP runtimes in one process starve each other, so we link none: Python finds the one
// torch has mapped and hands us the address of its GOMP_parallel (libgomp, and libomp's compatible entry).
#pragma once

#include <cstdint>
#include <type_traits>

namespace atk {

// void GOMP_parallel(void (*fn)(void*), void* data, unsigned num_threads, unsigned flags)
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// For the calling thread. `run == nullptr` or `threads <= 1` makes every parallel_for a plain loop.
void set_parallel(GompParallel run, int threads);

int num_threads();

namespace detail {
using Body = void (*)(const void* fn, int64_t begin, int64_t end);
void parallel_for(int64_t n, int64_t grain, Body body, const void* fn);
}  // namespace detail

// fn(i) once for every i in [0, n), in any order and on any thread. A thread draws `grain` successive items at a time
// from one counter, so uneven items balance; n <= grain stays on the caller and wakes no thread. The first exception of
// fn is thrown again here, after all threads have stopped.
template <class Fn>
void parallel_for(int64_t n, int64_t grain, const Fn& fn) {
  static_assert(std::is_invocable_v<const Fn&, int64_t>);
  detail::parallel_for(
      n, grain,
      [](const void* erased, int64_t begin, int64_t end) {
        const Fn& call = *static_cast<const Fn*>(erased);
        for (int64_t i = begin; i < end; ++i) call(i);
      },
      &fn);
}

}  // namespace atk
