// Small kernels for tests/kernels/test_emulator.py: right ones, and one for each mistake that the emulator must report.
#include <pybind11/pybind11.h>

#include "cuda/launch.h"
#include "cuda/ptx.h"

namespace {

using namespace atk;
using namespace atk::cuda;

struct Job {
  const void* in;
  const void* other;
  float* out;
  bool wrong;
};

// out[i] = in[i ^ 1] by way of shared memory; wrong: nobody waits.
void swap_neighbours(Job job) {
  auto* const shared = reinterpret_cast<float*>(shared_memory());
  shared[threadIdx.x] = static_cast<const float*>(job.in)[threadIdx.x];
  if (!job.wrong) sync_block();
  job.out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// Sums of warps by shuffles; wrong: lane 3 does not take part.
void add_warp(Job job) {
  if (job.wrong && threadIdx.x == 3) return;
  float sum = static_cast<const float*>(job.in)[threadIdx.x];
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  job.out[threadIdx.x] = sum;
}

// A barrier that carries a flag; wrong: half of the block wants something of a warp first that one lane does not.
void divergent_barrier(Job job) {
  if (job.wrong && threadIdx.x < 31) sync_warp();
  job.out[threadIdx.x] = any_of_block(threadIdx.x == 5);
}

// Wrong: lane 3 asks at another place of the source than the others.
void two_places(Job job) {
  const float x = static_cast<const float*>(job.in)[threadIdx.x];
  if (job.wrong && threadIdx.x == 3)
    job.out[threadIdx.x] = shuffle_xor(x, 1);
  else
    job.out[threadIdx.x] = shuffle_xor(x, 1);
}

// 16 bytes a thread through shared memory; wrong: they are read before they are waited for.
void copy_through(Job job) {
  auto* const shared = reinterpret_cast<float*>(shared_memory()) + 4 * threadIdx.x;
  copy_async(shared, static_cast<const float*>(job.in) + 4 * threadIdx.x, threadIdx.x != 7);
  copy_commit();
  if (!job.wrong) copy_wait<0>();
  for (int i = 0; i < 4; ++i) job.out[4 * threadIdx.x + i] = shared[i];
  copy_wait<0>();
}

void forgotten_copy(Job job) {
  copy_async(shared_memory() + 16 * threadIdx.x, job.in, true);
  copy_commit();
  if (!job.wrong) copy_wait<0>();
}

void misaligned_copy(Job job) {
  copy_async(shared_memory() + 16 * threadIdx.x, static_cast<const char*>(job.in) + (job.wrong ? 4 : 0), true);
  copy_commit();
  copy_wait<0>();
}

void write_behind(Job job) {
  if (threadIdx.x == 0) reinterpret_cast<float*>(shared_memory())[job.wrong ? 256 : 255] = 1.0f;
}

void write_before(Job job) {
  if (threadIdx.x == 0) reinterpret_cast<float*>(shared_memory())[job.wrong ? -1 : 0] = 1.0f;
}

void stop(Job job) {
  if (job.wrong && threadIdx.x == 9) trap();
}

// out [16, 8] = in [16, 16] other [16, 8] of 16-bit elements: `other` by transposed loads.
template <class T>
void multiply_tile(Job job) {
  auto* const shared = reinterpret_cast<T*>(shared_memory());
  for (int i = threadIdx.x; i < 256; i += 32) shared[i] = static_cast<const T*>(job.in)[i];
  for (int i = threadIdx.x; i < 256; i += 32) shared[256 + i] = static_cast<const T*>(job.other)[i];
  sync_warp();
  const int lane = threadIdx.x, matrix = lane / 8, row = lane % 8;
  uint32_t a[4], b[4];
  load_matrices(a, shared + (matrix % 2 * 8 + row) * 16 + matrix / 2 * 8);
  load_transposed(b, shared + 256 + (matrix % 2 * 8 + row) * 16 + matrix / 2 * 8);
  for (int half = 0; half < 2; ++half) {
    float c[4] = {};
    multiply<T>(c, a, b[2 * half], b[2 * half + 1]);
    for (int i = 0; i < 4; ++i) job.out[(lane / 4 + i / 2 * 8) * 16 + half * 8 + 2 * (lane % 4) + i % 2] = c[i];
  }
}

void run(const std::string& name, uintptr_t in, uintptr_t other, uintptr_t out, bool wrong) {
  const Job job = {reinterpret_cast<void*>(in), reinterpret_cast<void*>(other), reinterpret_cast<float*>(out), wrong};
  const auto go = [&](void (*kernel)(Job), unsigned threads) {
    launch(name.c_str(), kernel, dim3(1), threads, 1024, nullptr, job);
  };
  if (name == "swap_neighbours") return go(swap_neighbours, 64);
  if (name == "add_warp") return go(add_warp, 64);
  if (name == "divergent_barrier") return go(divergent_barrier, 64);
  if (name == "copy_through") return go(copy_through, 64);
  if (name == "two_places") return go(two_places, 64);
  if (name == "forgotten_copy") return go(forgotten_copy, 64);
  if (name == "write_before") return go(write_before, 64);
  if (name == "misaligned_copy") return go(misaligned_copy, 64);
  if (name == "write_behind") return go(write_behind, 64);
  if (name == "stop") return go(stop, 64);
  go(name == "bf16" ? multiply_tile<bf16> : multiply_tile<f16>, 32);
}

}  // namespace

PYBIND11_MODULE(toys, module) {
  module.def("run", &run);
}
