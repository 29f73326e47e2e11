// Philox-4x32-10: a random function of a counter and a key, so a draw needs no state (Salmon et al., "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstdint>

#include "common/hd.h"

namespace atk {

struct PhiloxWords {
  uint32_t word[4];
};

ATK_HD PhiloxWords philox(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  uint32_t (&c)[4] = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xd2511f53} * c[0], second = uint64_t{0xcd9e8d57} * c[2];
    c[0] = static_cast<uint32_t>(second >> 32) ^ c[1] ^ key0;
    c[1] = static_cast<uint32_t>(second);
    c[2] = static_cast<uint32_t>(first >> 32) ^ c[3] ^ key1;
    c[3] = static_cast<uint32_t>(first);
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  return counter;
}

// 53 random bits of one draw: key `seed`, counter (position, agent, 0, 0), where numbers from 2^32 on put their upper
// halves into the last two words.
ATK_HD uint64_t random_53_bits(int64_t seed, int64_t agent, int64_t position) {
  const auto low = [](int64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](int64_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32); };
  const PhiloxWords words = philox({{low(position), low(agent), high(position), high(agent)}}, low(seed), high(seed));
  return uint64_t{words.word[0]} << 21 ^ words.word[1] >> 11;
}

}  // namespace atk
