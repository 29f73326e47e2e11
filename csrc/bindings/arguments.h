// How the records of asyncthink_kernels/arguments.py become the arguments of C++, field by field and by name. Outputs
// come beside the record. Reading needs the interpreter's lock; kernels run without it.
#pragma once

#include "bindings/view.h"
#include "common/attention.h"
#include "common/row_attention.h"
#include "common/sample.h"

namespace atk {

inline View read_tensor(py::handle record, const char* field) {
  return read_view(py::object(record.attr(field)));
}

template <class T>
std::optional<T> read_optional(py::handle record, const char* field) {
  const py::object value = record.attr(field);
  if (value.is_none()) return std::nullopt;
  if constexpr (std::is_same_v<T, View>)
    return read_view(value);
  else
    return py::cast<T>(value);
}

inline Attention read_attention(py::handle record, const View& out, const View& lse, bool interleaved) {
  const AttentionOptions options = {.scale = py::cast<float>(record.attr("logit_scale")),
                                    .window = read_optional<int64_t>(record, "window").value_or(0),
                                    .softcap = read_optional<float>(record, "softcap").value_or(0.0f),
                                    .interleaved = interleaved};
  return {.q = read_tensor(record, "q"),
          .k_cache = read_tensor(record, "k_cache"),
          .v_cache = read_tensor(record, "v_cache"),
          .sinks = read_optional<View>(record, "sinks"),
          .out = out,
          .lse = lse,
          .options = options};
}

inline TreeAttention read_tree_attention(py::handle record, const View& out, const View& lse) {
  return {read_attention(record, out, lse, py::cast<bool>(record.attr("interleaved"))),
          read_tensor(record, "items"),
          read_tensor(record, "pages"),
          read_tensor(record, "entries"),
          read_tensor(record, "row_ptr"),
          read_tensor(record, "positions"),
          read_tensor(record, "shifts"),
          read_optional<View>(record, "cos"),
          read_optional<View>(record, "sin")};
}

inline PagedAttention read_paged_attention(py::handle record, const View& out, const View& lse) {
  return {read_attention(record, out, lse, false), read_tensor(record, "block_tables"), read_tensor(record, "seq_lens"),
          py::cast<int64_t>(record.attr("chunk"))};
}

inline RowAttention read_row_attention(py::handle record, const View& out, const View& lse) {
  return {.q = read_tensor(record, "q"),
          .k = read_tensor(record, "k"),
          .v = read_tensor(record, "v"),
          .rows = read_tensor(record, "rows"),
          .ranges = read_tensor(record, "ranges"),
          .trees = read_tensor(record, "trees"),
          .scale = py::cast<float>(record.attr("scale")),
          .out = out,
          .lse = lse};
}

inline Sample read_sample(py::handle record, const View& tokens, const View& logprobs) {
  return {.logits = read_tensor(record, "logits"),
          .seeds = read_tensor(record, "seeds"),
          .agents = read_tensor(record, "agents"),
          .positions = read_tensor(record, "positions"),
          .temperature = read_tensor(record, "temperature"),
          .top_k = read_tensor(record, "top_k"),
          .top_p = read_tensor(record, "top_p"),
          .min_p = read_tensor(record, "min_p"),
          .tokens = tokens,
          .logprobs = logprobs};
}

}  // namespace atk
