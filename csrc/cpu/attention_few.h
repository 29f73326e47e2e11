// Few query rows, as of one branch: what would be packed (attention_pack.h) is read once, so both products take K and V
// from where they lie. K becomes columns in registers, on the way to its product. Each sum is the chain of
// multiply-adds that the packed operands give (attention_gemm.h), so a row has the same bits either way, alone and
// beside others.
#pragma once

#include "cpu/attention_pack.h"

#if defined(ATK_LANES)
namespace atk::ATK_ISA {

constexpr int kFewRows = 6;  // as many accumulators as registers beside K's columns allow

// No Vec reaches beyond a row.
template <class Storage>
inline bool serves_few(int64_t rows, int64_t D, int64_t Dv) {
  return rows <= kFewRows && loads_columns<Storage>(D) && Dv % (2 * W) == 0;
}

// s [MR, tokens of NB blocks of W] = Q K^T
template <class Storage, int MR, int NB>
inline void few_scores_block(const Storage* const* k, int64_t D, const float* q, float* s, int64_t tile,
                             Ahead& shared) {
  using Math = typename Operand<Storage>::Math;
  constexpr int64_t kLine = 64 / sizeof(Storage);  // elements; a line of a block is used up before the next block's
  Ahead ahead = shared;
  const int64_t depth = dwords<Storage>(D);
  Vec acc[NB][MR];
#pragma GCC unroll 2
  for (int b = 0; b < NB; ++b)
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) acc[b][m] = splat(0.0f);
  for (int64_t line = 0; line < D; line += kLine) {
    const int64_t end = line + kLine < D ? line + kLine : D;
#pragma GCC unroll 2
    for (int b = 0; b < NB; ++b) {
      for (int64_t d = line; d < end; d += kColumnElements<Storage>) {
        ahead.step((kTransposeCost + W * MR) * kColumnElements<Storage> / (W * kPerDword<Storage>));
        const float* a[MR];
#pragma GCC unroll 6
        for (int m = 0; m < MR; ++m) {
          a[m] = q + m * depth + d / kPerDword<Storage>;
          asm("" : "+r"(a[m]));  // else GCC keeps an address for every element of a row, and spills them
        }
        each_column(k + b * W, d, [&](int i, Vec column) __attribute__((always_inline)) {
#pragma GCC unroll 6
          for (int m = 0; m < MR; ++m) acc[b][m] = Math::multiply_add(splat_dword(a[m] + i), column, acc[b][m]);
          asm volatile("" ::: "memory");  // else GCC loads the queries of all columns first, and spills them
        });
      }
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < NB; ++b)
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) store(s + m * tile + b * W, acc[b][m]);
  shared = ahead;
}

template <class Storage, int MR>
inline void few_scores(const Storage* const* k, int tokens, int64_t D, const float* q, float* s, int64_t tile,
                       Ahead& ahead) {
  constexpr int NB = MR < 4 ? 2 : 1;  // two blocks where the chains of one would leave the chip idle
  int t = 0;
  for (; t + NB * W <= tokens; t += NB * W) few_scores_block<Storage, MR, NB>(k + t, D, q, s + t, tile, ahead);
  if (t < tokens) few_scores_block<Storage, MR, 1>(k + t, D, q, s + t, tile, ahead);
}

// NR Vecs of V at an element of one token, or of a pair of tokens.
template <class Storage, int NR>
inline __attribute__((always_inline)) void few_columns(const Storage* const* v, int64_t column, Vec (&columns)[NR]) {
#if defined(ATK_BF16_DOT)
  if constexpr (kPerDword<Storage> == 2) {
#pragma GCC unroll 2
    for (int j = 0; j < NR; j += 2)
      zip_pairs(Operand<Storage>::load_dwords(v[0] + column + j * W, 2 * W),
                Operand<Storage>::load_dwords(v[1] + column + j * W, 2 * W), columns[j], columns[j + 1]);
    return;
  }
#endif
#pragma GCC unroll 4
  for (int j = 0; j < NR; ++j) columns[j] = Operand<Storage>::load_dwords(v[0] + column + j * W, W);
}

template <class Storage, int MR, int NR>
inline void few_values_block(const Storage* const* v, int tokens, int64_t column, const float* p, int64_t tile,
                             const float* alpha, float* o, int64_t o_stride, Ahead& shared) {
  using Math = typename Operand<Storage>::Math;
  Ahead ahead = shared;
  Vec acc[MR][NR];
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) acc[m][j] = mul(splat(alpha[m]), load(o + m * o_stride + column + j * W));
  const auto add_products = [&](int t) __attribute__((always_inline)) {
    Vec columns[NR];
    few_columns<Storage, NR>(v + t, column, columns);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
      const Vec a = splat_dword(p + m * tile + t / kPerDword<Storage>);
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) acc[m][j] = Math::multiply_add(a, columns[j], acc[m][j]);
    }
  };
  for (int t = 0; t < tokens; t += 2 * kPerDword<Storage>) {
    ahead.step(2 * (MR + 1) * NR);
    add_products(t);
    add_products(t + kPerDword<Storage>);
  }
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) store(o + m * o_stride + column + j * W, acc[m][j]);
  shared = ahead;
}

// o [MR, Dv] = alpha o + P V
template <class Storage, int MR>
inline void few_values(const Storage* const* v, int tokens, int64_t Dv, const float* p, int64_t tile,
                       const float* alpha, float* o, int64_t o_stride, Ahead& ahead) {
  int64_t column = 0;
  for (; column + kVecColumns * W <= Dv; column += kVecColumns * W)
    few_values_block<Storage, MR, kVecColumns>(v, tokens, column, p, tile, alpha, o, o_stride, ahead);
  for (; column < Dv; column += 2 * W)
    few_values_block<Storage, MR, 2>(v, tokens, column, p, tile, alpha, o, o_stride, ahead);
}

// f(std::integral_constant<int, rows>) for 1 <= rows <= kFewRows
template <class Fn>
inline void with_few(int rows, const Fn& f) {
  switch (rows) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 5:
      return f(std::integral_constant<int, 5>());
    default:
      return f(std::integral_constant<int, kFewRows>());
  }
}

}  // namespace atk::ATK_ISA
#endif
