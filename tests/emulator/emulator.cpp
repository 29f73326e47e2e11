#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

namespace emulator {
namespace {

constexpr size_t kStack = 256 << 10, kGuard = 4096, kWarp = 32;
constexpr int kPoison = 0xff;  // NaN in every float type

struct Copy {
  void* shared;
  const void* global;
  bool there;
};

struct Fiber {
  Thread thread;
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf place;
  bool begun, done;
  const char* waits;  // for what, or null
  bool flag;
  void* brought;
  std::vector<std::vector<Copy>> groups;  // the last is open
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<char> shared;
  size_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  jmp_buf scheduler;
  Fiber* now = nullptr;
  std::string error;
  bool any = false;
  std::mt19937 random{static_cast<unsigned>(
      std::atoi(std::getenv("ASYNCTHINK_EMULATOR_SEED") ? std::getenv("ASYNCTHINK_EMULATOR_SEED") : "0"))};

  char* memory() {
    const auto base = reinterpret_cast<uintptr_t>(shared.data());
    return shared.data() + ((base + 127) / 128 * 128 - base);
  }
};

Block block;

void enter() {
  (*block.body)();
  block.now->done = true;
  _longjmp(block.scheduler, 1);
}

void yield() {
  if (_setjmp(block.now->place) == 0) _longjmp(block.scheduler, 1);
}

void run(Fiber& fiber) {
  block.now = &fiber;
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack = {.ss_sp = fiber.stack.get(), .ss_flags = 0, .ss_size = kStack};
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, enter, 0);
  setcontext(&fiber.start);
}

std::string spell(const Fiber& fiber) {
  return "thread " + std::to_string(fiber.thread.index.x) + (fiber.done ? " is done" : " waits in ") +
         (fiber.done ? "" : fiber.waits);
}

// Nobody can go on: says who waits for whom.
std::string deadlock() {
  const Fiber* first = nullptr;
  for (const Fiber& fiber : block.fibers)
    if (!fiber.done && !first) first = &fiber;
  for (const Fiber& fiber : block.fibers)
    if (fiber.done || std::strcmp(fiber.waits, first->waits) != 0) return spell(*first) + ", " + spell(fiber);
  return spell(*first) + " for ever";
}

void open_block_barrier() {
  for (const Fiber& fiber : block.fibers)
    if (fiber.done || !fiber.waits || std::strcmp(fiber.waits, "sync_block") != 0) return;
  block.any = false;
  for (Fiber& fiber : block.fibers) block.any |= fiber.flag;
  for (Fiber& fiber : block.fibers) fiber.waits = nullptr;
}

void run_block() {
  std::vector<size_t> order(block.fibers.size());
  std::iota(order.begin(), order.end(), 0);
  for (;;) {
    std::shuffle(order.begin(), order.end(), block.random);
    bool ran = false, left = false;
    for (const size_t i : order) {
      Fiber& fiber = block.fibers[i];
      if (fiber.done || fiber.waits) continue;
      run(fiber);
      ran = true;
      if (!block.error.empty()) return;
    }
    for (const Fiber& fiber : block.fibers) left |= !fiber.done;
    if (!left) return;
    if (!ran) {
      block.error = deadlock();
      return;
    }
  }
}

void reset(dim3 at, dim3 blocks, unsigned threads) {
  if (block.fibers.size() != threads) block.fibers = std::vector<Fiber>(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.thread = {dim3(i, 0, 0), at, dim3(threads), blocks};
    fiber.begun = fiber.done = fiber.flag = false;
    fiber.waits = nullptr;
    fiber.groups.assign(1, {});
  }
  std::memset(block.shared.data(), kPoison, block.shared.size());
}

bool guard_is_whole() {
  const char* const end = block.memory() + block.shared_bytes;
  return std::all_of(end, end + kGuard, [](char c) { return static_cast<unsigned char>(c) == kPoison; });
}

}  // namespace

const Thread& thread() {
  return block.now->thread;
}

char* shared_memory() {
  return block.memory();
}

size_t shared_limit() {
  const char* const bytes = std::getenv("ASYNCTHINK_EMULATOR_SHARED");
  return bytes ? std::strtoull(bytes, nullptr, 10) : 99 << 10;  // the smallest of the chips that are built for
}

void launch(const char* op, dim3 blocks, unsigned threads, size_t shared, const std::function<void()>& body) {
  if (shared > shared_limit()) throw std::runtime_error(std::string(op) + ": more shared memory than there is");
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0 || blocks.y > 65535 || blocks.z > 65535 || threads > 1024)
    throw std::runtime_error(std::string(op) + ": invalid configuration of blocks or threads");
  block.body = &body;
  block.error.clear();
  block.shared_bytes = shared;
  block.shared.resize(shared + 128 + kGuard);
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) {
        reset({x, y, z}, blocks, threads);
        run_block();
        if (block.error.empty() && !guard_is_whole()) block.error = "wrote behind the end of shared memory";
        if (block.error.empty()) continue;
        block.fibers.clear();
        throw std::runtime_error(std::string(op) + ": block (" + std::to_string(x) + ", " + std::to_string(y) + ", " +
                                 std::to_string(z) + "): " + block.error);
      }
}

void fail(const std::string& what) {
  block.error = what + " in thread " + std::to_string(block.now->thread.index.x);
  _longjmp(block.scheduler, 1);
}

bool meet_block(bool flag) {
  block.now->flag = flag;
  block.now->waits = "sync_block";
  open_block_barrier();
  yield();
  return block.any;
}

void meet_warp(const char* name, void* brought, const std::function<void(Lanes)>& work) {
  Fiber& self = *block.now;
  self.waits = name;
  self.brought = brought;
  const size_t first = self.thread.index.x / kWarp * kWarp;
  if (first + kWarp > block.fibers.size()) fail(std::string(name) + ": a warp of fewer than 32 threads");
  void* lanes[kWarp];
  bool all = true;
  for (size_t i = 0; i < kWarp && all; ++i) {
    const Fiber& lane = block.fibers[first + i];
    all = !lane.done && lane.waits && std::strcmp(lane.waits, name) == 0;
    lanes[i] = lane.brought;
  }
  if (!all) return yield();
  work(lanes);
  for (size_t i = 0; i < kWarp; ++i) block.fibers[first + i].waits = nullptr;
}

void copy_async(void* shared, const void* global, bool there) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || (there && reinterpret_cast<uintptr_t>(global) % 16))
    fail("copy_async: an address that is no multiple of 16");
  const char* const at = static_cast<char*>(shared);
  if (at < block.memory() || at + 16 > block.memory() + block.shared_bytes) fail("copy_async: not to shared memory");
  std::memset(shared, kPoison, 16);
  block.now->groups.back().push_back({shared, global, there});
}

void copy_commit() {
  block.now->groups.emplace_back();
}

void copy_wait(int pending) {
  auto& groups = block.now->groups;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const Copy& copy : groups.front()) {
      if (copy.there)
        std::memcpy(copy.shared, copy.global, 16);
      else
        std::memset(copy.shared, 0, 16);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace emulator
