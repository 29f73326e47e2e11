#include "block.h"

#include <sys/mman.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "chip.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace atk::emulator {

Chip chip;

namespace {

uint32_t draw(uint32_t below) {
  chip.random ^= chip.random << 13, chip.random ^= chip.random >> 7, chip.random ^= chip.random << 17;
  return static_cast<uint32_t>((chip.random >> 32) * below >> 32);
}

long long setting(const char* name, long long otherwise) {
  const char* const text = std::getenv(name);
  if (!text) return otherwise;
  long long value = 0;
  const char* const end = text + std::strlen(text);
  if (const auto [at, bad] = std::from_chars(text, end, value); bad != std::errc() || at != end || value < 0)
    throw std::runtime_error(std::string(name) + ": expected a whole number, got '" + text + "'");
  return value;
}

// ---- fibers --------------------------------------------------------------------------------------------------------

// Saves `from` and goes on with any thread that is ready, or with run_block().
void leave(jmp_buf& from) {
  if (_setjmp(from) != 0) return;
  if (chip.ready.empty()) _longjmp(chip.main, 1);
  std::swap(chip.ready[draw(static_cast<uint32_t>(chip.ready.size()))], chip.ready.back());
  chip.running = chip.ready.back();
  chip.ready.pop_back();
  threadIdx.x = chip.running->index;
  _longjmp(chip.running->resume, 1);
}

void live() {
  Fiber& self = *chip.running;
  if (_setjmp(self.resume) == 0) setcontext(&chip.creator);
  for (;;) {
    chip.grid->thread(chip.grid->call);
    if (!self.copies.empty()) fail("returned while a copy_async is under way", self.copies.front().place);
    self.state = State::returned;
    leave(self.resume);
  }
}

void begin(Fiber& fiber, unsigned index) {
  fiber.index = index;
  if (!fiber.stack) {
    fiber.stack = static_cast<char*>(
        mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (fiber.stack == MAP_FAILED) throw std::bad_alloc();
    mprotect(fiber.stack, kPage, PROT_NONE);
  }
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack + kPage;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, live, 0);
  chip.running = &fiber;
  swapcontext(&chip.creator, &context);
}

void prepare(unsigned threads) {
  if (!chip.arena) {
    chip.arena = static_cast<char*>(
        mmap(nullptr, kArena + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (chip.arena == MAP_FAILED) throw std::bad_alloc();
    mprotect(chip.arena, kPage, PROT_NONE), mprotect(chip.arena + kPage + kArena, kPage, PROT_NONE);
    chip.fibers.reserve(kMaxThreads);
  }
  while (chip.fibers.size() < threads) {
    chip.fibers.emplace_back();
    begin(chip.fibers.back(), static_cast<unsigned>(chip.fibers.size() - 1));
  }
}

// ---- blocks --------------------------------------------------------------------------------------------------------

void check_canaries() {
  const auto whole = [](const char* from) {
    for (size_t i = 0; i < kCanary; ++i)
      if (static_cast<unsigned char>(from[i]) != (i % 2 ? kPoison : kCanaryByte)) return false;
    return true;
  };
  if (!whole(chip.shared() - kCanary)) chip.error = "wrote before the beginning of shared memory";
  if (!whole(chip.shared() + chip.grid->shared)) chip.error = "wrote past the end of shared memory";
}

void poison() {
  std::memset(chip.shared(), kPoison, chip.grid->shared);
  for (char* at : {chip.shared() - kCanary, chip.shared() + chip.grid->shared})
    for (size_t i = 0; i < kCanary; ++i) at[i] = static_cast<char>(i % 2 ? kPoison : kCanaryByte);
}

void run_block() {
  poison();
  chip.ready.clear();
  for (unsigned i = 0; i < chip.grid->threads; ++i) {
    chip.fibers[i].state = State::ready;
    chip.fibers[i].open_group = 0;
    chip.ready.push_back(&chip.fibers[i]);
  }
  std::memset(chip.waiting_in_warp, 0, sizeof chip.waiting_in_warp);
  chip.waiting_in_block = 0;
  leave(chip.main);
  if (chip.error.empty())
    for (unsigned i = 0; i < chip.grid->threads; ++i)
      if (chip.fibers[i].state != State::returned) {
        chip.error = stuck();
        break;
      }
  if (chip.error.empty()) check_canaries();
}

void abandon() {
  for (unsigned i = 0; i < chip.fibers.size(); ++i) {
    chip.fibers[i].copies.clear();
    begin(chip.fibers[i], i);
  }
}

void check_grid(const Grid& grid) {
  const auto bad = [&](const std::string& what) { throw std::runtime_error(std::string(grid.op) + ": " + what); };
  const dim3& b = grid.blocks;
  if (b.x < 1 || b.y < 1 || b.z < 1 || b.x > 0x7fffffffu || b.y > 65535 || b.z > 65535)
    bad("invalid grid of " + spell(uint3{b.x, b.y, b.z}) + " blocks");
  if (grid.threads < 1 || grid.threads > kMaxThreads || grid.threads % kLanes)
    bad("expected full warps, at most 1024 threads, got " + std::to_string(grid.threads));
  const size_t limit = shared_limit();
  if (grid.shared > limit)
    bad("expected at most " + std::to_string(limit) + " bytes of shared memory, got " + std::to_string(grid.shared));
}

}  // namespace

void run(const Grid& grid) {
  const std::lock_guard lock(chip.busy);
  check_grid(grid);
  prepare(grid.threads);
  chip.grid = &grid, chip.error.clear();
  chip.random = 0x9e3779b97f4a7c15ull * static_cast<uint64_t>(setting("ATK_EMULATOR_SEED", 0) + 1);
  gridDim = grid.blocks, blockDim = dim3(grid.threads), threadIdx = {0, 0, 0};
  const uint64_t total = uint64_t{grid.blocks.x} * grid.blocks.y * grid.blocks.z;
  uint64_t step = 1 + draw(0x7fffffff), at = draw(0x7fffffff) % total;
  while (std::gcd(step, total) != 1) ++step;
  for (uint64_t i = 0; i < total; ++i, at = (at + step) % total) {
    blockIdx = {static_cast<unsigned>(at % grid.blocks.x), static_cast<unsigned>(at / grid.blocks.x % grid.blocks.y),
                static_cast<unsigned>(at / grid.blocks.x / grid.blocks.y)};
    run_block();
    if (chip.error.empty()) continue;
    const std::string message = std::string(grid.op) + ": block " + spell(blockIdx) + ": " + chip.error;
    abandon();
    throw std::runtime_error(message);
  }
}

size_t shared_limit() {
  return static_cast<size_t>(setting("ATK_EMULATOR_SHARED", 99 << 10));  // the smallest of the chips we build for
}

char* shared_memory() {
  return chip.shared();
}

void fail(const std::string& message, const Place& place) {
  chip.error = "thread " + std::to_string(chip.running->index) + ": " + message + " at " + spell(place);
  chip.ready.clear();
  _longjmp(chip.main, 1);
}

void wait_for_warp(const char* what, void* argument, Carry carry, const Place& place) {
  Fiber& self = *chip.running;
  self.state = State::at_warp, self.what = what, self.place = place, self.argument = argument;
  const unsigned warp = self.index / kLanes;
  if (++chip.waiting_in_warp[warp] < kLanes) return leave(self.resume);
  void* arguments[kLanes];
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Fiber& other = chip.fibers[warp * kLanes + lane];
    if (!same(other.place, place)) chip.ready.clear(), _longjmp(chip.main, 1);
    arguments[lane] = other.argument;
  }
  carry(arguments);
  chip.waiting_in_warp[warp] = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    Fiber& other = chip.fibers[warp * kLanes + lane];
    other.state = State::ready;
    if (&other != &self) chip.ready.push_back(&other);
  }
}

bool wait_for_block(const char* what, bool flag, const Place& place) {
  static bool any;
  Fiber& self = *chip.running;
  self.state = State::at_block, self.what = what, self.place = place, self.flag = flag;
  if (++chip.waiting_in_block < static_cast<int>(chip.grid->threads)) {
    leave(self.resume);
    return any;
  }
  any = false;
  for (unsigned i = 0; i < chip.grid->threads; ++i) {
    if (!same(chip.fibers[i].place, place)) chip.ready.clear(), _longjmp(chip.main, 1);
    any |= chip.fibers[i].flag;
  }
  chip.waiting_in_block = 0;
  for (unsigned i = 0; i < chip.grid->threads; ++i) {
    chip.fibers[i].state = State::ready;
    if (&chip.fibers[i] != &self) chip.ready.push_back(&chip.fibers[i]);
  }
  return any;
}

void check_shared(const char* what, const void* address, const Place& place) {
  const auto* const at = static_cast<const char*>(address);
  if (reinterpret_cast<uintptr_t>(at) % 16) fail(std::string(what) + ": the address is not divisible by 16", place);
  if (at < chip.shared() || at + 16 > chip.shared() + chip.grid->shared)
    fail(std::string(what) + ": byte " + std::to_string(at - chip.shared()) + " of " +
             std::to_string(chip.grid->shared) + " bytes of shared memory",
         place);
}

void copy_later(void* shared, const void* global, bool there, const Place& place) {
  check_shared("copy_async", shared, place);
  if (reinterpret_cast<uintptr_t>(global) % 16) fail("copy_async: the source is not divisible by 16", place);
  std::memset(shared, kPoison, 16);
  chip.running->copies.push_back({shared, global, there, chip.running->open_group, place});
}

void end_group() {
  ++chip.running->open_group;
}

void wait_for_groups(int pending) {
  Fiber& self = *chip.running;
  size_t done = 0;
  for (; done < self.copies.size() && self.copies[done].group < self.open_group - pending; ++done) {
    const Copy& copy = self.copies[done];
    if (copy.there)
      std::memcpy(copy.shared, copy.global, 16);
    else
      std::memset(copy.shared, 0, 16);
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace atk::emulator
