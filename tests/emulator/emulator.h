// A GPU's blocks on a CPU, for tests: every thread of a block is a fiber that runs until it waits for others. Made to
// show mistakes, not to hide them:
//   - threads take turns in a shuffled order (ASYNCTHINK_EMULATOR_SEED), so a missing barrier shows;
//   - a barrier or warp operation that not all of its threads reach is an error that says who waits where;
//   - shared memory is NaN before a block begins, as large as was asked for, and watched behind its end;
//   - an asynchronous copy arrives when its thread waits for it and not before, its place being NaN meanwhile.
// Shuffles and matrix products are what PTX says of the instruction; sums of products are in double, rounded once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

struct Thread {
  dim3 index, block, threads, blocks;
};

// The running thread.
const Thread& thread();

char* shared_memory();

// Runs `body` in every thread of every block. Throws std::runtime_error, beginning with `op`, for what is said above.
void launch(const char* op, dim3 blocks, unsigned threads, size_t shared, const std::function<void()>& body);

[[noreturn]] void fail(const std::string& what);  // in a thread: ends the launch

// All threads of the block meet; returns whether any brought `flag`.
bool meet_block(bool flag);

// All 32 lanes of a warp meet in an operation of this name; `work` sees what each lane brought and is done once.
using Lanes = void* const (&)[32];
void meet_warp(const char* name, void* brought, const std::function<void(Lanes)>& work);

void copy_async(void* shared, const void* global, bool there);
void copy_commit();
void copy_wait(int pending);

size_t shared_limit();

}  // namespace emulator
