// Operands of the two products of attention, packed from the storage type into dwords (attention_gemm.h):
//   S = Q K^T   sums over D:       Q [M, D]            and K transposed [D, tokens]
//   O = P V     sums over tokens:  P [M, tokens]       and V [tokens, Dv]
// With pairs, D and tokens are halved and rounded up. What lies beyond D, Dv or the tokens is zero.
#pragma once

#include <type_traits>

#include "common/rope.h"
#include "common/slots.h"
#include "cpu/attention_gemm.h"

namespace atk::ATK_ISA {

constexpr int64_t kTransposeCost = 4 * W;  // of a W x W block, in vector operations
constexpr int64_t kZipCost = 3;            // of a Vec of V
constexpr int kMaxTile = 64;               // tokens of a K/V tile: those a row sees are bits of one uint64_t

// How a storage type is multiplied: bfloat16 in pairs where the chip can, everything else as floats.
template <class Storage>
struct Operand {
  using Math = FloatMath;
  static Vec load_dwords(const Storage* p, int64_t elements) {
    return load_first(p, static_cast<int>(elements < W ? elements : W));
  }
};

#if defined(ATK_BF16_DOT)
template <>
struct Operand<bf16> {
  using Math = PairMath;
  static Vec load_dwords(const bf16* p, int64_t elements) {
    return load_pairs_first(p, static_cast<int>(elements < 2 * W ? elements : 2 * W));
  }
};
#endif

template <class Storage>
constexpr int64_t kPerDword = Operand<Storage>::Math::kElements;

template <class Storage>
inline int64_t dwords(int64_t elements) {
  return ceil_div(elements, kPerDword<Storage>);
}

// Tokens of a tile: so many that K [dwords, tokens] takes 16 KB, and the products read it from the first-level cache.
inline int64_t tile_tokens(int64_t depth) {
  int64_t tokens = kMaxTile;
  while (tokens > 16 && tokens * depth > 4096) tokens /= 2;
  return tokens;
}

inline int64_t round_up(int64_t n, int64_t multiple) {
  return ceil_div(n, multiple) * multiple;
}

#if defined(ATK_LANES)
// Whether K's rows become columns as they are loaded. float16 has no such way: its dwords do not widen lane by lane.
template <class Storage>
inline bool loads_columns(int64_t D) {
  return !std::is_same_v<Storage, f16> && D * static_cast<int64_t>(sizeof(Storage)) % (16 * kChunks) == 0;
}

// The K of W tokens from element d on, kChunks x 16 bytes of each: f(i, column) for each dword i of the product.
template <class Storage, class Fn>
inline __attribute__((always_inline)) void each_column(const Storage* const* rows, int64_t d, const Fn& f) {
  constexpr bool widens = sizeof(Storage) == 2 && kPerDword<Storage> == 1;
  Vec r[kChunks][4];
  load_lanes(reinterpret_cast<const char* const*>(rows), d * static_cast<int64_t>(sizeof(Storage)), r);
#pragma GCC unroll 4
  for (int c = 0; c < kChunks; ++c) {
    transpose_lanes(r[c]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if constexpr (widens) {
        Vec even, odd;
        widen_pairs(r[c][i], even, odd);
        f(8 * c + 2 * i, even);
        f(8 * c + 2 * i + 1, odd);
      } else {
        f(4 * c + i, r[c][i]);
      }
    }
  }
}

template <class Storage>
constexpr int64_t kColumnElements = 16 * kChunks / sizeof(Storage);  // of a row, that each_column takes
#endif

// rows[t]: K of token t, for `tokens` (a multiple of W) tokens; packed [dwords(D), tile].
template <class Storage>
inline void pack_k(const Storage* const* rows, int tokens, int64_t D, int64_t tile, float* packed, Ahead& ahead) {
  const int64_t depth = dwords<Storage>(D);
#if defined(ATK_LANES)
  if (loads_columns<Storage>(D)) {
    for (int token = 0; token < tokens; token += W) {
      for (int64_t d = 0; d < D; d += kColumnElements<Storage>) {
        float* const to = packed + d / kPerDword<Storage> * tile + token;
        each_column(rows + token, d, [&](int i, Vec column) { store(to + i * tile, column); });
        ahead.step(kTransposeCost * kColumnElements<Storage> / (W * kPerDword<Storage>));
      }
    }
    return;
  }
#endif
  for (int token = 0; token < tokens; token += W) {
    for (int64_t d = 0; d < depth; d += W) {
      Vec block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        block[i] = Operand<Storage>::load_dwords(rows[token + i] + d * kPerDword<Storage>, D - d * kPerDword<Storage>);
      transpose(block);
      ahead.step(kTransposeCost);
      float* to = packed + d * tile + token;
      const int64_t valid = depth - d;
      if (valid >= W) {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(to + i * tile, block[i]);
      } else {
        for (int64_t i = 0; i < valid; ++i) store(to + i * tile, block[i]);
      }
    }
  }
}

// rows[t]: V of token t, for `tokens` (even) tokens; packed [dwords(tokens), Dv rounded up to W].
template <class Storage>
inline void pack_v(const Storage* const* rows, int tokens, int64_t Dv, float* packed, Ahead& ahead) {
  const int64_t whole = Dv / W * W;
  for (int token = 0; token < tokens; ++token) {
    ahead.step(kZipCost * Dv / W);
    for (int64_t d = 0; d < whole; d += W, packed += W)
      store(packed, Operand<Storage>::load_dwords(rows[token] + d, W));
    if (whole == Dv) continue;
    store(packed, Operand<Storage>::load_dwords(rows[token] + whole, Dv - whole));
    packed += W;
  }
}

#if defined(ATK_BF16_DOT)
template <>
inline void pack_v<bf16>(const bf16* const* rows, int tokens, int64_t Dv, float* packed, Ahead& ahead) {
  for (int token = 0; token < tokens; token += 2) {
    ahead.step(kZipCost * Dv / W);
    for (int64_t d = 0; d < Dv; d += 2 * W) {
      Vec first, second;
      zip_pairs(Operand<bf16>::load_dwords(rows[token] + d, Dv - d),
                Operand<bf16>::load_dwords(rows[token + 1] + d, Dv - d), first, second);
      store(packed, first);
      packed += W;
      if (Dv - d <= W) continue;
      store(packed, second);
      packed += W;
    }
  }
}
#endif

// A query row, rotated by minus the shift's angle where cos is given: dot(R(-a) q, k) = dot(q, R(a) k).
template <class Storage>
inline void pack_q(const Storage* q, int64_t D, const float* cos, const float* sin, int64_t R, bool interleaved,
                   float* packed) {
  using Element = std::conditional_t<kPerDword<Storage> == 2, Storage, float>;
  auto* const to = reinterpret_cast<Element*>(packed);
  packed[dwords<Storage>(D) - 1] = 0.0f;  // an odd D leaves half a pair
  if constexpr (std::is_same_v<Element, Storage>)
    __builtin_memcpy(to, q, D * sizeof(Storage));
  else
    for (int64_t d = 0; d < D; ++d) to[d] = to_float(q[d]);
  if (!cos) return;
  for (int64_t i = 0; i < R; ++i) {
    const RopePair pair = rope_pair(i, R, interleaved);
    float a = to_float(q[pair.a]), b = to_float(q[pair.b]);
    rotate(a, b, cos[i], -sin[i]);
    to[pair.a] = from_float<Element>(a);
    to[pair.b] = from_float<Element>(b);
  }
}

}  // namespace atk::ATK_ISA
