// Attention over packed rows, with gradients: the arguments and their checks. T tokens, Hq query heads, H kv heads, D
// and Dv head dims of K and V, R rows, M ranges, N trees.
#pragma once

#include "common/check.h"

namespace atk {

// Tokens [start, stop) attend to themselves, causally, and to all tokens of ranges [first, last) of `ranges`.
struct AttentionRow {
  int64_t start, stop, first, last;
};

struct TokenRange {
  int64_t first, last;
};

struct RowAttention {
  View q;       // [T, Hq, D]
  View k;       // [T, H, D]
  View v;       // [T, H, Dv]
  View rows;    // [R, 4] int64: AttentionRow
  View ranges;  // [M, 2] int64: TokenRange
  View trees;   // [N, 2] int64: rows [first, last); rows of different trees see no token in common
  float scale;
  bool bfloat16;  // products of factors that are rounded to bfloat16, where the processor multiplies pairs of them
  View out;       // [T, Hq, Dv], written at the tokens of rows
  View lse;       // [T, Hq]: log2 of the sum of 2^logit, logits in units of log2

  Sizes check() const {
    Sizes sizes;
    sizes.bind("q", q, {"T", "Hq", "D"});
    sizes.bind("k", k, {"T", "H", "D"});
    sizes.bind("v", v, {"T", "H", "Dv"});
    sizes.bind("out", out, {"T", "Hq", "Dv"});
    sizes.bind("lse", lse, {"T", "Hq"});
    sizes.bind("rows", rows, {"R", "4"});
    sizes.bind("ranges", ranges, {"M", "2"});
    sizes.bind("trees", trees, {"N", "2"});
    for (const auto& [name, view] : {std::pair{"q", &q}, {"k", &k}, {"v", &v}, {"out", &out}, {"lse", &lse}}) {
      check_dtype(name, *view, DType::f32);
      check_last_contiguous(name, *view);
    }
    for (const auto& [name, view] : {std::pair{"rows", &rows}, {"ranges", &ranges}, {"trees", &trees}}) {
      check_dtype(name, *view, DType::i64);
      check_contiguous(name, *view);
    }
    const int64_t Hq = sizes["Hq"], H = sizes["H"];
    if (H < 1 || Hq % H) fail("q", "a multiple of the " + std::to_string(H) + " heads of k", std::to_string(Hq));
    for (const char* dim : {"D", "Dv"})
      if (sizes[dim] < 16 || sizes[dim] % 16) fail(dim, "a multiple of 16", std::to_string(sizes[dim]));
    check_pairs("ranges", ranges, 2, 0, sizes["T"]);
    check_pairs("rows", rows, 4, 0, sizes["T"]);
    check_pairs("rows", rows, 4, 2, sizes["M"]);
    check_pairs("trees", trees, 2, 0, sizes["R"]);
    return sizes;
  }

 private:
  static std::string interval(const char* opening, int64_t first, int64_t last, const char* closing) {
    std::string text(opening);
    text += std::to_string(first);
    text += ", ";
    text += std::to_string(last);
    return text += closing;
  }

  // Columns `at` and `at + 1` of each line are an interval within [0, size].
  static void check_pairs(const char* name, const View& view, int64_t columns, int64_t at, int64_t size) {
    check_size(name, std::to_string(columns) + " columns", view.shape[1], columns);
    for (int64_t i = 0; i < view.shape[0]; ++i) {
      const int64_t* pair = view.as<const int64_t>() + i * columns + at;
      if (pair[0] < 0 || pair[1] < pair[0] || pair[1] > size)
        fail(std::string(name) + "[" + std::to_string(i) + "]", interval("an interval within [", 0, size, "]"),
             interval("[", pair[0], pair[1], ")"));
    }
  }
};

struct RowAttentionGrads {
  View out;  // gradient of out [T, Hq, Dv]
  View q;    // [T, Hq, D], written at the tokens of rows
  View k;    // [T, H, D], added to
  View v;    // [T, H, Dv], added to

  void check(const RowAttention& args) const {
    Sizes sizes = args.check();
    sizes.bind("grad of out", out, {"T", "Hq", "Dv"});
    sizes.bind("grad of q", q, {"T", "Hq", "D"});
    sizes.bind("grad of k", k, {"T", "H", "D"});
    sizes.bind("grad of v", v, {"T", "H", "Dv"});
    for (const auto& [name, view] :
         {std::pair{"grad of out", &out}, {"grad of q", &q}, {"grad of k", &k}, {"grad of v", &v}}) {
      check_dtype(name, *view, DType::f32);
      check_last_contiguous(name, *view);
    }
  }
};

}  // namespace atk
