// The state of the emulated chip: one block of fibers and its shared memory.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <mutex>
#include <string>
#include <vector>

#include "block.h"

namespace atk::emulator {

constexpr size_t kStack = 64 << 10, kPage = 4096, kCanary = 4096, kArena = 256 << 10;
constexpr int kPoison = 0xff, kCanaryByte = 0xa5;
constexpr unsigned kMaxThreads = 1024;

enum class State { ready, at_warp, at_block, returned };

struct Copy {
  void* shared;
  const void* global;
  bool there;
  int64_t group;
  Place place;
};

struct Fiber {
  jmp_buf resume;
  unsigned index = 0;
  char* stack = nullptr;
  State state = State::returned;
  const char* what = nullptr;
  Place place;
  void* argument = nullptr;
  bool flag = false;
  int64_t open_group = 0;
  std::vector<Copy> copies;
};

struct Chip {
  std::mutex busy;
  std::vector<Fiber> fibers;  // never moved once begun: sized to kMaxThreads
  std::vector<Fiber*> ready;
  int waiting_in_warp[kMaxThreads / kLanes] = {}, waiting_in_block = 0;
  jmp_buf main;
  ucontext_t creator;
  Fiber* running = nullptr;
  const Grid* grid = nullptr;
  char* arena = nullptr;
  std::string error;
  uint64_t random = 0;

  char* shared() { return arena + kPage + kCanary; }
};

extern Chip chip;

// Whether two threads are at the same place of the source.
bool same(const Place& a, const Place& b);

// "file:line", "(x, y, z)".
std::string spell(const Place& place);
std::string spell(const uint3& at);

// Who waits where, of a block in which nobody can go on.
std::string stuck();

}  // namespace atk::emulator
