// Compiled once per instruction set.
#include <cmath>

#include "cpu/row_attention.h"
#include "cpu/simd.h"

namespace atk::ATK_ISA {
namespace {

constexpr int kRows = W == 16 ? 8 : 4;  // of a tile: with two Vecs each, as many as the registers hold
constexpr float kNothing = -1e30f;      // below any logit
constexpr float kLn2 = 0.693147181f;
static_assert(kRows <= kTileRows && kPadding % (2 * W) == 0);

// Element (i, k) of a factor whose elements are read one by one.
struct Factor {
  const float* data;
  int64_t row, column;  // strides
};

// C [R, C * W] = (add ? C : 0) + A [R, K] B [K, C * W].
template <int R, int C>
inline void multiply_block(const Factor& a, int64_t K, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                           bool add_to) {
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) acc[r][j] = add_to ? load(c + r * c_stride + j * W) : splat(0.0f);
  const float* left = a.data;
  for (int64_t k = 0; k < K; ++k, left += a.column, b += b_stride) {
    Vec right[C];
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) right[j] = load(b + j * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec x = splat(left[r * a.row]);
#pragma GCC unroll 2
      for (int j = 0; j < C; ++j) acc[r][j] = fma(x, right[j], acc[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < C; ++j) store(c + r * c_stride + j * W, acc[r][j]);
}

// C [R, n] = (add ? C : 0) + A [R, K] B [K, n]; n is a multiple of W.
template <int R>
inline void multiply_rows(const Factor& a, int64_t K, const Matrix& b, int64_t n, const MutableMatrix& c, bool add_to) {
  int64_t j = 0;
  for (; j + 2 * W <= n; j += 2 * W) multiply_block<R, 2>(a, K, b.data + j, b.stride, c.data + j, c.stride, add_to);
  if (j < n) multiply_block<R, 1>(a, K, b.data + j, b.stride, c.data + j, c.stride, add_to);
}

// C [m, n] += A [m, K] B [K, n].
inline void add_product(Factor a, int64_t m, int64_t K, const Matrix& b, int64_t n, MutableMatrix c) {
  const auto advance = [&](int64_t by) { a.data += by * a.row, c.data += by * c.stride, m -= by; };
  for (; m >= kRows; advance(kRows)) multiply_rows<kRows>(a, K, b, n, c, true);
  for (; m > 0; advance(1)) multiply_rows<1>(a, K, b, n, c, true);
}

// The first `tokens` rows times a factor, then rows of zeros.
inline void copy_rows(const Matrix& from, int64_t tokens, int64_t D, float factor, float* to) {
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t d = 0; d < D; ++d) to[r * D + d] = r < tokens ? from.data[r * from.stride + d] * factor : 0.0f;
}

struct Scratch {
  int64_t stride;  // of scores
  float *p, *ds;   // [kRows, stride]
  float *q, *dq;   // [kRows, D]
  float *o, *dout;  // [kRows, Dv]

  explicit Scratch(const RowTile& tile) : stride(tile.columns + 16) {
    p = tile.scratch;
    ds = p + kTileRows * stride;
    q = ds + kTileRows * stride;
    dq = q + kTileRows * tile.D;
    o = dq + kTileRows * tile.D;
    dout = o + kTileRows * tile.Dv;
  }
};

inline int64_t padded(int64_t columns) {
  return (columns + kPadding - 1) / kPadding * kPadding;
}

// Columns of a segment that token r of the tile sees.
inline int64_t visible(const RowTile& tile, const SeenSegment& segment, int64_t r) {
  return &segment == tile.segments + tile.count - 1 && r < tile.tokens ? tile.causal + r : segment.columns;
}

inline uint64_t lanes_below(int64_t count) {
  return count >= W ? ~uint64_t{0} : count <= 0 ? 0 : (uint64_t{1} << count) - 1;
}

// scores [kRows, columns] of left [kRows, K] against transposed [K, T].
inline void score(const RowTile& tile, const float* left, int64_t K, const Matrix& transposed, float* scores,
                  int64_t stride) {
  for (int64_t s = 0; s < tile.count; ++s) {
    const SeenSegment& segment = tile.segments[s];
    multiply_rows<kRows>({left, K, 1}, K, {transposed.data + segment.token, transposed.stride}, padded(segment.columns),
                         {scores + segment.at, stride}, false);
  }
}

void transpose_all(const Matrix& from, int64_t T, int64_t D, float* to, int64_t stride) {
  int64_t t = 0;
  for (; t + W <= T; t += W)
    for (int64_t d = 0; d < D; d += W) {
      Vec block[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) block[i] = load(from.data + (t + i) * from.stride + d);
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(to + (d + i) * stride + t, block[i]);
    }
  for (; t < stride; ++t)
    for (int64_t d = 0; d < D; ++d) to[d * stride + t] = t < T ? from.data[t * from.stride + d] : 0.0f;
}

// Scores of token r become 2^(score - largest), zeros where it does not see; returns {largest, their sum}.
struct Softmax {
  float largest, sum;
};

inline Softmax softmax(const RowTile& tile, int64_t r, float* scores) {
  Vec top = splat(kNothing);
  for (int64_t s = 0; s < tile.count; ++s) {
    const SeenSegment& segment = tile.segments[s];
    const int64_t seen = visible(tile, segment, r);
    for (int64_t c = 0; c < seen; c += W)
      top = max(top, select(lanes_below(seen - c), load(scores + segment.at + c), splat(kNothing)));
  }
  const float largest = reduce_max(top);
  const Vec shift = splat(largest), zero = splat(0.0f);
  Vec sums = zero;
  for (int64_t s = 0; s < tile.count; ++s) {
    const SeenSegment& segment = tile.segments[s];
    const int64_t seen = visible(tile, segment, r), end = padded(segment.columns);
    float* row = scores + segment.at;
    int64_t c = 0;
    for (; c + W <= seen; c += W) {
      const Vec p = exp2(sub(load(row + c), shift));
      sums = add(sums, p);
      store(row + c, p);
    }
    for (; c < end; c += W) {
      const Vec p = select(lanes_below(seen - c), exp2(sub(load(row + c), shift)), zero);
      sums = add(sums, p);
      store(row + c, p);
    }
  }
  return {largest, reduce_add(sums)};
}

void forward(const RowTile& tile) {
  const Scratch scratch(tile);
  copy_rows(tile.q, tile.tokens, tile.D, tile.scale, scratch.q);
  score(tile, scratch.q, tile.D, tile.kt, scratch.p, scratch.stride);
  float inverse[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    const Softmax made = softmax(tile, r, scratch.p + r * scratch.stride);
    inverse[r] = 1.0f / made.sum;
    if (r < tile.tokens) tile.lse.data[r * tile.lse.stride] = made.largest + std::log2(made.sum);
  }
  for (int64_t s = 0; s < tile.count; ++s) {
    const SeenSegment& segment = tile.segments[s];
    multiply_rows<kRows>({scratch.p + segment.at, scratch.stride, 1}, segment.columns,
                         {tile.v.data + segment.token * tile.v.stride, tile.v.stride}, tile.Dv, {scratch.o, tile.Dv},
                         s > 0);
  }
  for (int64_t r = 0; r < tile.tokens; ++r)
    for (int64_t d = 0; d < tile.Dv; ++d)
      tile.out.data[r * tile.out.stride + d] = scratch.o[r * tile.Dv + d] * inverse[r];
}

// Scores of token r become its probabilities p, and those of dO V^T the gradients of the logits times ln 2.
inline void logit_grads(const RowTile& tile, int64_t r, float lse, float delta, float* scores, float* ds) {
  const Vec shift = splat(lse), mean = splat(delta), ln2 = splat(kLn2), zero = splat(0.0f);
  for (int64_t s = 0; s < tile.count; ++s) {
    const SeenSegment& segment = tile.segments[s];
    const int64_t seen = visible(tile, segment, r), end = padded(segment.columns);
    for (int64_t c = segment.at; c < segment.at + end; c += W) {
      Vec p = exp2(sub(load(scores + c), shift));
      if (c - segment.at + W > seen) p = select(lanes_below(seen - (c - segment.at)), p, zero);
      store(scores + c, p);
      store(ds + c, mul(mul(p, ln2), sub(load(ds + c), mean)));
    }
  }
}

void backward(const RowTile& tile, const RowTileGrads& grads) {
  const Scratch scratch(tile);
  const int64_t D = tile.D, Dv = tile.Dv, stride = scratch.stride;
  copy_rows(tile.q, tile.tokens, D, tile.scale, scratch.q);
  copy_rows(grads.out, tile.tokens, Dv, 1.0f, scratch.dout);
  score(tile, scratch.q, D, tile.kt, scratch.p, stride);
  score(tile, scratch.dout, Dv, tile.vt, scratch.ds, stride);
  for (int64_t r = 0; r < kRows; ++r) {
    float lse = 0.0f, delta = 0.0f;
    if (r < tile.tokens) {
      Vec sum = splat(0.0f);
      for (int64_t d = 0; d < Dv; d += W)
        sum = fma(load(scratch.dout + r * Dv + d), load(tile.out.data + r * tile.out.stride + d), sum);
      delta = reduce_add(sum);
      lse = tile.lse.data[r * tile.lse.stride];
    }
    logit_grads(tile, r, lse, delta, scratch.p + r * stride, scratch.ds + r * stride);
  }
  for (int64_t s = 0; s < tile.count; ++s) {
    const SeenSegment& segment = tile.segments[s];
    const float *p = scratch.p + segment.at, *ds = scratch.ds + segment.at;
    float* dk = grads.k.data + segment.token * grads.k.stride;
    float* dv = grads.v.data + segment.token * grads.v.stride;
    multiply_rows<kRows>({ds, stride, 1}, segment.columns,
                         {tile.k.data + segment.token * tile.k.stride, tile.k.stride}, D, {scratch.dq, D}, s > 0);
    add_product({ds, 1, stride}, segment.columns, tile.tokens, {scratch.q, D}, D, {dk, grads.k.stride});
    add_product({p, 1, stride}, segment.columns, tile.tokens, {scratch.dout, Dv}, Dv, {dv, grads.v.stride});
  }
  for (int64_t r = 0; r < tile.tokens; ++r)
    for (int64_t d = 0; d < D; ++d) grads.q.data[r * grads.q.stride + d] = scratch.dq[r * D + d] * tile.scale;
}

}  // namespace

extern const RowAttentionKernels row_attention_kernels = {kRows, transpose_all, forward, backward};

}  // namespace atk::ATK_ISA
