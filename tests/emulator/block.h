// Blocks of CUDA threads on a CPU. A thread is a fiber that runs until it waits for its warp or its block; then one of
// those that can go on runs, which one a seeded generator says (ATK_EMULATOR_SEED). Blocks run one after another, in an
// order of the same generator. What a kernel does wrong ends the launch with an error; the fibers are then abandoned as
// they stand, so nothing on their stacks may own memory while they wait.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <source_location>
#include <string>

namespace atk::emulator {

constexpr int kLanes = 32;

// Where a thread is in the kernel's source.
using Place = std::source_location;

struct Grid {
  const char* op;
  dim3 blocks;
  unsigned threads;
  size_t shared;  // bytes of dynamic shared memory
  void (*thread)(const void* call);
  const void* call;
};

// Throws std::runtime_error("op: ...") for a bad launch and for what a thread did wrong.
void run(const Grid& grid);

// Bytes of shared memory that a block may ask for (ATK_EMULATOR_SHARED).
size_t shared_limit();

// The rest is for the thread that runs.

// The block's shared memory: as large as asked, NaN (0xff) where nothing was written.
char* shared_memory();

// Ends the launch: "op: message at file:line (block ..., thread ...)".
[[noreturn]] void fail(const std::string& message, const Place& place);

// Waits until all lanes of the warp are at this place; the last one to come carries it out, given every lane's
// argument.
using Carry = void (*)(void* const* arguments);
void wait_for_warp(const char* what, void* argument, Carry carry, const Place& place);

// Waits until all threads of the block are at this place; whether any of them came with a flag.
bool wait_for_block(const char* what, bool flag, const Place& place);

// 16 bytes of shared memory at an address that is divisible by 16, or the launch ends.
void check_shared(const char* what, const void* address, const Place& place);

// Asynchronous copies are made when their group is waited for and not before; until then their destination is NaN.
void copy_later(void* shared, const void* global, bool there, const Place& place);
void end_group();
void wait_for_groups(int pending);

}  // namespace atk::emulator
