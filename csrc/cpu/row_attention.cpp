#include <algorithm>
#include <vector>

#include "cpu/ops.h"
#include "cpu/row_attention.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr float kLog2E = 1.44269504f;

struct Tile {
  int64_t row, first;  // its first token
};

int64_t round_up(int64_t x, int64_t to) {
  return (x + to - 1) / to * to;
}

Matrix head(const View& x, int64_t h, int64_t token = 0) {
  return {x.as<const float>() + h * x.strides[1] + token * x.strides[0], x.strides[0]};
}

MutableMatrix mutable_head(const View& x, int64_t h, int64_t token = 0) {
  return {x.as<float>() + h * x.strides[1] + token * x.strides[0], x.strides[0]};
}

// The tiles of a call and their heads' arguments.
class Job {
 public:
  Job(const RowAttention& args, const Sizes& sizes, const View& workspace)
      : args_(args),
        T_(sizes["T"]),
        H_(sizes["H"]),
        group_(sizes["Hq"] / std::max<int64_t>(sizes["H"], 1)),
        D_(sizes["D"]),
        Dv_(sizes["Dv"]),
        stride_(round_up(T_ + kPadding, 16)),
        memory_(workspace.as<float>()),
        pairs_(args.bfloat16 && row_attention_kernels().pairs.forward) {}

  const RowAttentionMath& math() const {
    return pairs_ ? row_attention_kernels().pairs : row_attention_kernels().floats;
  }

  int64_t kv_heads() const { return H_; }
  int64_t group() const { return group_; }
  const AttentionRow& row(int64_t i) const { return args_.rows.as<const AttentionRow>()[i]; }

  // Writes what the kernels read beside K and V: K transposed, and of pairs V, or for gradients V transposed and K.
  void prepare_heads(bool gradients) const {
    const RowAttentionKernels& kernels = row_attention_kernels();
    parallel_for(H_, 1, [&](int64_t h) {
      const Matrix k = head(args_.k, h), v = head(args_.v, h);
      const auto transpose = pairs_ ? kernels.transpose_pairs : kernels.transpose;
      transpose(k, T_, D_, kt(h), stride_);
      if (gradients) transpose(v, T_, Dv_, vt(h), stride_);
      if (pairs_ && gradients) kernels.pair_tokens(k, T_, D_, k_pairs(h));
      if (pairs_ && !gradients) kernels.pair_tokens(v, T_, Dv_, v_pairs(h));
    });
  }

  // Tiles of rows [first, last), in their order.
  std::vector<Tile> tiles(int64_t first, int64_t last) const {
    std::vector<Tile> made;
    for (int64_t i = first; i < last; ++i)
      for (int64_t token = row(i).start; token < row(i).stop; token += row_attention_kernels().rows)
        made.push_back({i, token});
    return made;
  }

  // The tile for query head `hq`; memory of this thread, until its next call.
  RowTile prepare(const Tile& tile, int64_t hq) const {
    static thread_local std::vector<SeenSegment> segments;
    static thread_local std::vector<float> scratch;
    const AttentionRow& own = row(tile.row);
    const int64_t tokens = std::min(row_attention_kernels().rows, own.stop - tile.first), h = hq / group_;
    int64_t columns = 0;
    segments.clear();
    const auto see = [&](int64_t first, int64_t last) {
      if (first == last) return;
      segments.push_back({first, last - first, columns});
      columns += round_up(last - first, kPadding);
    };
    for (int64_t i = own.first; i < own.last; ++i) {
      const TokenRange& range = args_.ranges.as<const TokenRange>()[i];
      see(range.first, range.last);
    }
    see(own.start, tile.first + tokens);
    const size_t floats = static_cast<size_t>(row_scratch(columns, D_, Dv_));
    if (scratch.size() < floats) scratch.resize(floats);
    return {.segments = segments.data(),
            .count = static_cast<int64_t>(segments.size()),
            .causal = tile.first - own.start + 1,
            .tokens = tokens,
            .columns = columns,
            .D = D_,
            .Dv = Dv_,
            .scale = args_.scale * kLog2E,
            .q = head(args_.q, hq, tile.first),
            .k = pairs_ ? Matrix{k_pairs(h), D_} : head(args_.k, h),
            .v = pairs_ ? Matrix{v_pairs(h), Dv_} : head(args_.v, h),
            .kt = {kt(h), stride_},
            .vt = {vt(h), stride_},
            .out = mutable_head(args_.out, hq, tile.first),
            .lse = {args_.lse.as<float>() + tile.first * args_.lse.strides[0] + hq, args_.lse.strides[0]},
            .scratch = scratch.data()};
  }

 private:
  // Four parts of a head's memory, [D, stride] and [Dv, stride] twice.
  float* part(int64_t h, int64_t lines) const { return memory_ + (2 * h * (D_ + Dv_) + lines) * stride_; }
  float* kt(int64_t h) const { return part(h, 0); }
  float* vt(int64_t h) const { return part(h, D_); }
  float* k_pairs(int64_t h) const { return part(h, D_ + Dv_); }
  float* v_pairs(int64_t h) const { return part(h, 2 * D_ + Dv_); }

  const RowAttention& args_;
  int64_t T_, H_, group_, D_, Dv_, stride_;
  float* memory_;
  bool pairs_;
};

void check_workspace(const View& workspace, const Sizes& sizes) {
  check_dtype("workspace", workspace, DType::f32);
  check_contiguous("workspace", workspace);
  const int64_t floats = row_attention_workspace(sizes["T"], sizes["H"], sizes["D"], sizes["Dv"]);
  if (workspace.ndim != 1 || workspace.shape[0] < floats)
    fail("workspace", std::to_string(floats) + " floats", workspace.ndim ? std::to_string(workspace.shape[0]) : "none");
}

}  // namespace

int64_t row_attention_workspace(int64_t T, int64_t H, int64_t D, int64_t Dv) {
  return 2 * H * (D + Dv) * round_up(T + kPadding, 16);
}

void row_attention(const RowAttention& args, const View& workspace) {
  const Sizes sizes = args.check();
  check_workspace(workspace, sizes);
  const Job job(args, sizes, workspace);
  job.prepare_heads(false);
  const std::vector<Tile> tiles = job.tiles(0, sizes["R"]);
  const int64_t Hq = sizes["Hq"], count = static_cast<int64_t>(tiles.size());
  parallel_for(count * Hq, 4, [&](int64_t item) {  // a head's tiles one after the other: its K and V stay in the cache
    job.math().forward(job.prepare(tiles[static_cast<size_t>(item % count)], item / count));
  });
}

// A tree's tiles and the query heads of a kv head add to the same gradients of K and V, so one thread takes them all,
// in one order.
void row_attention_backward(const RowAttention& args, const RowAttentionGrads& grads, const View& workspace) {
  grads.check(args);
  const Sizes sizes = args.check();
  check_workspace(workspace, sizes);
  const Job job(args, sizes, workspace);
  job.prepare_heads(true);
  const int64_t H = job.kv_heads();
  parallel_for(sizes["N"] * H, 1, [&](int64_t item) {
    const TokenRange& tree = args.trees.as<const TokenRange>()[item / H];
    const int64_t h = item % H;
    const MutableMatrix dk = mutable_head(grads.k, h), dv = mutable_head(grads.v, h);
    for (const Tile& tile : job.tiles(tree.first, tree.last))
      for (int64_t hq = h * job.group(); hq < (h + 1) * job.group(); ++hq)
        job.math().backward(
            job.prepare(tile, hq),
            {.out = head(grads.out, hq, tile.first), .q = mutable_head(grads.q, hq, tile.first), .k = dk, .v = dv});
  });
}

}  // namespace atk
