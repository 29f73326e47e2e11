// Row attention of a tile, forward and backward. Compiled once per instruction set.
#include <cmath>
#include <utility>

#include "cpu/row_attention_products.h"

namespace atk::ATK_ISA {
namespace {

constexpr float kNothing = -1e30f;  // below any logit
constexpr float kLn2 = 0.693147181f;

// The first `tokens` rows times a factor, then rows of zeros.
inline void copy_rows(const Matrix& from, int64_t tokens, int64_t D, float factor, float* to) {
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t d = 0; d < D; ++d) to[r * D + d] = r < tokens ? from.data[r * from.stride + d] * factor : 0.0f;
}

struct Scratch {
  int64_t stride;   // of scores
  float *p, *ds;    // [kRows, stride]
  float *q, *dq;    // [kRows, D]
  float *o, *dout;  // [kRows, Dv]
  float* rounded;   // what is made of these for the products, one after the other

  explicit Scratch(const RowTile& tile) : stride(tile.columns + 16) {
    p = tile.scratch;
    ds = p + kTileRows * stride;
    q = ds + kTileRows * stride;
    dq = q + kTileRows * tile.D;
    o = dq + kTileRows * tile.D;
    dout = o + kTileRows * tile.Dv;
    rounded = dout + kTileRows * tile.Dv;
  }
};

// A factor of a product in the elements of Math: of floats they are the matrix itself, of pairs they are written to
// `to`.
template <class Math>
inline Matrix along_columns(const float* x, int64_t stride, [[maybe_unused]] int64_t columns,
                            [[maybe_unused]] float* to) {
#if ATK_BF16_DOT
  if constexpr (Math::kPairs) {
    const int64_t width = stride / 2;
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < columns; c += 2 * W)
        store_pairs(to + r * width + c / 2, load(x + r * stride + c), load(x + r * stride + c + W));
    return {to, width};
  }
#endif
  return {x, stride};
}

template <class Math>
inline Matrix along_rows(const float* x, int64_t stride, [[maybe_unused]] int64_t columns, [[maybe_unused]] float* to) {
#if ATK_BF16_DOT
  if constexpr (Math::kPairs) {
    const auto rounded = [](const float* p) {
      Vec pairs;
      store_pairs(reinterpret_cast<float*>(&pairs), load(p), load(p + W));
      return pairs;
    };
    for (int64_t r = 0; r < kRows; r += 2)
      for (int64_t c = 0; c < columns; c += 2 * W) {
        const float* from = x + r * stride + c;
        Vec first, second;
        zip_pairs(rounded(from), rounded(from + stride), first, second);
        store(to + r / 2 * stride + c, first);
        store(to + r / 2 * stride + c + W, second);
      }
    return {to, stride};
  }
#endif
  return {x, stride};
}

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

// scores [kRows, columns] of left [kRows, K], made of floats, against transposed [K, T].
template <class Math>
inline void score(const RowTile& tile, const float* left, int64_t K, const Matrix& transposed, float* rounded,
                  float* scores, int64_t stride) {
  const Matrix factor = along_columns<Math>(left, K, K, rounded);
  for (int64_t s = 0; s < tile.count; ++s) {
    const SeenSegment& segment = tile.segments[s];
    multiply_rows<Math, kRows>({factor.data, factor.stride, 1}, K / kInputs<Math>,
                               {transposed.data + segment.token, transposed.stride}, padded(segment.columns),
                               {scores + segment.at, stride}, false);
  }
}

// out [kRows, n] of weights [kRows, columns], as along_columns made them, and rows [T, n] of Math's elements.
template <class Math>
inline void weighted_sum(const RowTile& tile, const Matrix& weights, const Matrix& rows, int64_t n, float* out) {
  constexpr int64_t kTokens = kInputs<Math>;
  for (int64_t s = 0; s < tile.count; ++s) {
    const SeenSegment& segment = tile.segments[s];
    multiply_rows<Math, kRows>({weights.data + segment.at / kTokens, weights.stride, 1},
                               (segment.columns + kTokens - 1) / kTokens,
                               {rows.data + segment.token * rows.stride, rows.stride * kTokens}, n, {out, n}, s > 0);
  }
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

template <class Math>
void forward(const RowTile& tile) {
  const Scratch scratch(tile);
  copy_rows(tile.q, tile.tokens, tile.D, tile.scale, scratch.q);
  score<Math>(tile, scratch.q, tile.D, tile.kt, scratch.rounded, scratch.p, scratch.stride);
  float inverse[kRows];
  for (int64_t r = 0; r < kRows; ++r) {
    const Softmax made = softmax(tile, r, scratch.p + r * scratch.stride);
    inverse[r] = 1.0f / made.sum;
    if (r < tile.tokens) tile.lse.data[r * tile.lse.stride] = made.largest + std::log2(made.sum);
  }
  const Matrix weights = along_columns<Math>(scratch.p, scratch.stride, tile.columns, scratch.rounded);
  weighted_sum<Math>(tile, weights, tile.v, tile.Dv, scratch.o);
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

template <class Math>
void backward(const RowTile& tile, const RowTileGrads& grads) {
  const Scratch scratch(tile);
  const int64_t D = tile.D, Dv = tile.Dv, stride = scratch.stride;
  copy_rows(tile.q, tile.tokens, D, tile.scale, scratch.q);
  copy_rows(grads.out, tile.tokens, Dv, 1.0f, scratch.dout);
  score<Math>(tile, scratch.q, D, tile.kt, scratch.rounded, scratch.p, stride);
  score<Math>(tile, scratch.dout, Dv, tile.vt, scratch.rounded, scratch.ds, stride);
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
  float* free = scratch.rounded;
  const auto take = [&](int64_t columns) { return std::exchange(free, free + kRows * columns + 2 * W); };
  const Matrix weights = along_columns<Math>(scratch.ds, stride, tile.columns, take(stride));
  weighted_sum<Math>(tile, weights, tile.k, D, scratch.dq);
  const Matrix ds = along_rows<Math>(scratch.ds, stride, tile.columns, take(stride));
  const Matrix p = along_rows<Math>(scratch.p, stride, tile.columns, take(stride));
  const Matrix q = along_rows<Math>(scratch.q, D, D, take(D));
  const Matrix dout = along_rows<Math>(scratch.dout, Dv, Dv, take(Dv));
  const int64_t K = (tile.tokens + kInputs<Math> - 1) / kInputs<Math>;
  for (int64_t s = 0; s < tile.count; ++s) {
    const SeenSegment& segment = tile.segments[s];
    add_product<Math>({ds.data + segment.at, 1, stride}, segment.columns, K, q, D,
                      {grads.k.data + segment.token * grads.k.stride, grads.k.stride});
    add_product<Math>({p.data + segment.at, 1, stride}, segment.columns, K, dout, Dv,
                      {grads.v.data + segment.token * grads.v.stride, grads.v.stride});
  }
  for (int64_t r = 0; r < tile.tokens; ++r)
    for (int64_t d = 0; d < D; ++d) grads.q.data[r * grads.q.stride + d] = scratch.dq[r * D + d] * tile.scale;
}

}  // namespace

extern const RowAttentionKernels row_attention_kernels = {
    .rows = kRows,
    .transpose = transpose_all,
    .floats = {forward<Floats>, backward<Floats>},
#if ATK_BF16_DOT
    .transpose_pairs = transpose_pairs,
    .pair_tokens = pair_tokens,
    .pairs = {forward<Pairs>, backward<Pairs>},
#else
    .transpose_pairs = nullptr,
    .pair_tokens = nullptr,
    .pairs = {nullptr, nullptr},
#endif
};

}  // namespace atk::ATK_ISA
