// asyncthink_kernels._cpu. Arguments are checked in C++ with the interpreter's lock released; atk::Error, as every
// std::invalid_argument, arrives in Python as ValueError.
#include <array>

#include "bindings/arguments.h"
#include "bindings/step_program.h"
#include "common/philox.h"
#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/threads.h"

namespace {

using namespace atk;
using Unlocked = py::call_guard<py::gil_scoped_release>;

void bind_attention(py::module_& module) {
  module.def(
      "tree_attention",
      [](py::handle args, const View& out, const View& lse, const View& workspace) {
        const TreeAttention attention = read_tree_attention(args, out, lse);
        const py::gil_scoped_release unlocked;
        tree_attention(attention, workspace);
      },
      py::arg("args"), py::arg("out"), py::arg("lse"), py::arg("workspace"));
  module.def("tree_attention_workspace", &tree_attention_workspace, py::arg("partials"), py::arg("q_heads"),
             py::arg("kv_heads"), py::arg("v_head_dim"));
  module.def(
      "paged_attention",
      [](py::handle args, const View& out, const View& lse, const View& workspace) {
        const PagedAttention attention = read_paged_attention(args, out, lse);
        const py::gil_scoped_release unlocked;
        paged_attention(attention, workspace);
      },
      py::arg("args"), py::arg("out"), py::arg("lse"), py::arg("workspace"));
  module.def("paged_attention_workspace", &paged_attention_workspace, py::arg("max_blocks"), py::arg("page_size"),
             py::arg("chunk"), py::arg("rows"), py::arg("q_heads"), py::arg("kv_heads"), py::arg("v_head_dim"));
}

void bind_row_attention(py::module_& module) {
  module.def(
      "row_attention",
      [](py::handle args, const View& out, const View& lse, const View& workspace) {
        const RowAttention attention = read_row_attention(args, out, lse);
        const py::gil_scoped_release unlocked;
        row_attention(attention, workspace);
      },
      py::arg("args"), py::arg("out"), py::arg("lse"), py::arg("workspace"));
  module.def(
      "row_attention_backward",
      [](py::handle args, const View& out, const View& lse, const View& grad, const View& q, const View& k,
         const View& v, const View& workspace) {
        const RowAttention attention = read_row_attention(args, out, lse);
        const py::gil_scoped_release unlocked;
        row_attention_backward(attention, {.out = grad, .q = q, .k = k, .v = v}, workspace);
      },
      py::arg("args"), py::arg("out"), py::arg("lse"), py::arg("grad"), py::arg("q"), py::arg("k"), py::arg("v"),
      py::arg("workspace"));
  module.def("row_attention_workspace", &row_attention_workspace, py::arg("tokens"), py::arg("kv_heads"),
             py::arg("head_dim"), py::arg("v_head_dim"));
}

void bind_cache_ops(py::module_& module) {
  module.def(
      "append_kv",
      [](const View& k, const View& v, const View& k_cache, const View& v_cache, const View& slots) {
        append_kv({.k = k, .v = v, .k_cache = k_cache, .v_cache = v_cache, .slots = slots});
      },
      Unlocked());
  module.def(
      "join_append",
      [](const View& k_caches, const View& v_caches, const View& src_slots, const View& dst_slots, const View& cos,
         const View& sin, bool interleaved) {
        join_append({.k_caches = k_caches,
                     .v_caches = v_caches,
                     .src_slots = src_slots,
                     .dst_slots = dst_slots,
                     .cos = cos,
                     .sin = sin,
                     .interleaved = interleaved});
      },
      Unlocked());
  module.def(
      "copy_pages",
      [](const View& k_caches, const View& v_caches, const View& src, const View& dst) {
        copy_pages({.k_caches = k_caches, .v_caches = v_caches, .src = src, .dst = dst});
      },
      Unlocked());
  module.def(
      "merge_states",
      [](const View& outs, const View& lses, const View& out, const View& lse) {
        merge_states({.outs = outs, .lses = lses, .out = out, .lse = lse});
      },
      Unlocked());
}

void bind_sample(py::module_& module) {
  module.def(
      "sample",
      [](py::handle args, const View& tokens, const View& logprobs) {
        const Sample job = read_sample(args, tokens, logprobs);
        const py::gil_scoped_release unlocked;
        sample(job);
      },
      py::arg("args"), py::arg("tokens"), py::arg("logprobs"));
  module.def(
      "philox",
      [](std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
        const PhiloxWords words = philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
        return std::to_array(words.word);
      },
      py::arg("counter"), py::arg("key"), "Philox-4x32-10, for tests.");
}

void bind_quantized_linear(py::module_& module) {
  module.def(
      "quantized_linear",
      [](const View& x, const View& quants, const View& scales, const OptionalView& mins, const OptionalView& bias,
         const View& out, const View& workspace) {
        const QuantizedLinear layer = {
            .x = x, .quants = quants, .scales = scales, .mins = mins, .bias = bias, .out = out};
        quantized_linears(&layer, 1, workspace);
      },
      Unlocked());
  module.def("quantized_linear_workspace", &quantized_linear_workspace, py::arg("rows"), py::arg("in_features"));
}

void bind_packed_linear(py::module_& module) {
  module.def(
      "packed_linear",
      [](const View& x, const View& packed, const OptionalView& bias, const View& out) {
        const PackedLinear layer = {.x = x, .packed = packed, .bias = bias, .out = out};
        packed_linears(&layer, 1);
      },
      Unlocked());
}

void bind_runtime(py::module_& module) {
  module.def("isa", &isa_name, "The instruction set in use.");
  module.def("usable_isas", &usable_isas, "The instruction sets this chip can run, narrowest first.");
  module.def("set_isa", &set_isa, py::arg("name"), "Force one for the whole process.");
  module.def(
      "set_parallel",
      [](uintptr_t gomp_parallel, int threads) {
        set_parallel(reinterpret_cast<GompParallel>(gomp_parallel), threads);
      },
      py::arg("gomp_parallel"), py::arg("threads"),
      "For the calling thread: the address of GOMP_parallel (0: run serially) and how many threads to ask it for.");
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "CPU kernels of asyncthink_kernels; called only by asyncthink_kernels.backends.native.";
  bind_attention(module);
  bind_row_attention(module);
  bind_cache_ops(module);
  bind_sample(module);
  bind_quantized_linear(module);
  bind_packed_linear(module);
  bind_step_program(module);
  bind_runtime(module);
}
