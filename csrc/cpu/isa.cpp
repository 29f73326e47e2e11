#include "cpu/isa.h"

#include <atomic>

#include "common/check.h"

namespace atk {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512bf16"};

// Wider sets include the narrower ones, so the chip's answer is one number. The builtins also ask the operating system
// whether it saves the wide registers.
Isa widest() {
#if ATK_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) return Isa::avx512bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::scalar;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> value{widest()};
  return value;
}

}  // namespace

Isa isa() {
  return chosen().load(std::memory_order_relaxed);
}

std::string isa_name() {
  return kNames[static_cast<int>(isa())];
}

std::vector<std::string> usable_isas() {
  return {kNames, kNames + static_cast<int>(widest()) + 1};
}

void set_isa(std::string_view name) {
  std::string usable;
  for (int i = 0; i <= static_cast<int>(widest()); ++i) {
    if (name == kNames[i]) return chosen().store(static_cast<Isa>(i));
    usable += (i ? ", " : "one of ") + std::string(kNames[i]);
  }
  fail("isa", usable, std::string(name));
}

}  // namespace atk
