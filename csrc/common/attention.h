// The arguments of tree_attention and paged_attention and the checks that read no device memory, for every
// device. T or B rows, Hq query heads, H kv heads, D and Dv head dims, P pages of S slots, I items, E entries, K
// shifts, R rotated pairs.
#pragma once

#include "common/check.h"

namespace atk {

struct AttentionOptions {
  float scale;
  int64_t window;  // 0: no window
  float softcap;   // 0: no cap
  bool interleaved;
};

// What both ops have.
struct Attention {
  View q;                 // [T, Hq, D]
  View k_cache, v_cache;  // [P, S, H, D], [P, S, H, Dv]
  OptionalView sinks;     // [Hq] float32
  View out;               // [T, Hq, Dv]
  View lse;               // [T, Hq] float32
  AttentionOptions options;

  // `rows` is the letter of the first dimension of q.
  void check(Sizes& sizes, std::string_view rows) const {
    sizes.bind("q", q, {rows, "Hq", "D"});
    sizes.bind("k_cache", k_cache, {"P", "S", "H", "D"});
    sizes.bind("v_cache", v_cache, {"P", "S", "H", "Dv"});
    sizes.bind("out", out, {rows, "Hq", "Dv"});
    sizes.bind("lse", lse, {rows, "Hq"});
    if (sizes["H"] < 1 || sizes["Hq"] % sizes["H"] != 0)
      fail("q", "a multiple of the " + std::to_string(sizes["H"]) + " kv heads",
           std::to_string(sizes["Hq"]) + " heads");
    if (sizes["D"] < 1 || sizes["Dv"] < 1) fail("k_cache, v_cache", "a head dim of at least 1", "0");
    check_storage_dtype("q", q);
    for (const auto& [name, view] : {std::pair{"q", &q}, {"k_cache", &k_cache}, {"v_cache", &v_cache}, {"out", &out}}) {
      check_dtype(name, *view, q.dtype);
      check_last_contiguous(name, *view);
    }
    check_dtype("lse", lse, DType::f32);
    if (!sinks) return;
    sizes.bind("sinks", *sinks, {"Hq"});
    check_dtype("sinks", *sinks, DType::f32);
    check_contiguous("sinks", *sinks);
  }
};

struct TreeAttention : Attention {
  View items;             // [I, 6] int32, see common/slots.h
  View pages;             // [*] int32
  View entries;           // [E, 5] int32
  View row_ptr;           // [T + 1] int32
  View positions;         // [T] int32
  View shifts;            // [K] int32
  OptionalView cos, sin;  // [K, R] float32

  Sizes check() const {
    Sizes sizes;
    Attention::check(sizes, "T");
    sizes.bind("items", items, {"I", "6"});
    sizes.bind("pages", pages, {"pages"});
    sizes.bind("entries", entries, {"E", "5"});
    sizes.bind("row_ptr", row_ptr, {"T+1"});
    sizes.bind("positions", positions, {"T"});
    sizes.bind("shifts", shifts, {"K"});
    check_size("items", "6 columns", sizes["6"], 6);
    check_size("entries", "5 columns", sizes["5"], 5);
    check_size("row_ptr", "T + 1 = " + std::to_string(sizes["T"] + 1) + " elements", sizes["T+1"], sizes["T"] + 1);
    for (const auto& [name, view] : {std::pair{"items", &items},
                                     {"pages", &pages},
                                     {"entries", &entries},
                                     {"row_ptr", &row_ptr},
                                     {"positions", &positions},
                                     {"shifts", &shifts}}) {
      check_dtype(name, *view, DType::i32);
      check_contiguous(name, *view);
    }
    check_angles(sizes);
    return sizes;
  }

 private:
  void check_angles(Sizes& sizes) const {
    if (cos.has_value() != sin.has_value()) fail("cos, sin", "both or neither", "one");
    if (!cos) return;
    sizes.bind("cos", *cos, {"K", "R"});
    sizes.bind("sin", *sin, {"K", "R"});
    for (const auto& [name, view] : {std::pair{"cos", &*cos}, {"sin", &*sin}}) {
      check_dtype(name, *view, DType::f32);
      check_contiguous(name, *view);
    }
    if (2 * sizes["R"] > sizes["D"])
      fail("cos", "2R <= D = " + std::to_string(sizes["D"]), "R = " + std::to_string(sizes["R"]));
  }
};

struct PagedAttention : Attention {
  View block_tables;  // [B, M] int32
  View seq_lens;      // [B] int32; the query's position is seq_len - 1
  int64_t chunk;      // tokens per work item

  Sizes check() const {
    Sizes sizes;
    Attention::check(sizes, "B");
    sizes.bind("block_tables", block_tables, {"B", "M"});
    sizes.bind("seq_lens", seq_lens, {"B"});
    check_dtype("block_tables", block_tables, DType::i32);
    check_dtype("seq_lens", seq_lens, DType::i32);
    if (chunk < 1) fail("chunk", "at least 1", std::to_string(chunk));
    return sizes;
  }
};

}  // namespace atk
