// Kernels of row_attention: a tile of a row's tokens and one head against all that they see; one table per instruction
// set. Logits are in units of log2, so that the exponential is exp2.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace atk {

constexpr int64_t kPadding = 32;  // columns of a segment's scores are a multiple of it

// Tokens [token, token + columns) that the tile sees; its scores begin at column `at`.
struct SeenSegment {
  int64_t token, columns, at;
};

// Rows of a matrix with stride between them.
struct Matrix {
  const float* data;
  int64_t stride;
};

struct MutableMatrix {
  float* data;
  int64_t stride;
};

// One head of the tokens of a tile, which see all of each segment; of the last one token r of the tile sees the first
// `causal + r` columns.
struct RowTile {
  const SeenSegment* segments;
  int64_t count;
  int64_t causal;
  int64_t tokens;   // of the tile, at most RowAttentionKernels::rows
  int64_t columns;  // of the scores, all segments
  int64_t D, Dv;
  float scale;        // of q . k, times log2(e)
  Matrix q;           // of the tile's tokens [tokens, D]
  Matrix k, v;        // of all tokens
  Matrix kt, vt;      // transposed: [D, T], [Dv, T], and kPadding columns more
  MutableMatrix out;  // of the tile's tokens [tokens, Dv]
  MutableMatrix lse;  // [tokens, 1]
  float* scratch;     // row_scratch floats
};

struct RowTileGrads {
  Matrix out;           // of the tile's tokens
  MutableMatrix q;      // of the tile's tokens
  MutableMatrix k, v;   // of all tokens, added to
};

constexpr int64_t kTileRows = 8;  // at most, in any instruction set

inline int64_t row_scratch(int64_t columns, int64_t D, int64_t Dv) {
  return kTileRows * (2 * (columns + 16) + 2 * D + 2 * Dv);
}

struct RowAttentionKernels {
  int64_t rows;  // tokens of a tile
  void (*transpose)(const Matrix& from, int64_t T, int64_t D, float* to, int64_t stride);
  void (*forward)(const RowTile& tile);
  void (*backward)(const RowTile& tile, const RowTileGrads& grads);
};

}  // namespace atk

ATK_DECLARE_ISA_TABLE(RowAttentionKernels, row_attention_kernels)
