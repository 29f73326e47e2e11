// asyncthink_kernels._cuda. The CUDA runtime is linked statically and looks for the driver at the first call: importing
// works on any machine, and unavailable_reason() says what is missing. Streams are integers (cudaStream_t).
#include "bindings/arguments.h"
#include "cuda/attention.h"
#include "cuda/ops.h"

namespace {

using namespace atk;
using Unlocked = py::call_guard<py::gil_scoped_release>;

std::optional<std::string> unavailable_reason() {
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no driver";
  if (const cudaError_t status = cudaGetDeviceCount(&devices); status != cudaSuccess) return cudaGetErrorString(status);
  if (devices == 0) return "no device";
  return std::nullopt;
}

cudaStream_t stream_of(uintptr_t stream) {
  return reinterpret_cast<cudaStream_t>(stream);
}

void bind_cache_ops(py::module_& module) {
  module.def(
      "append_kv",
      [](const View& k, const View& v, const View& k_cache, const View& v_cache, const View& slots, uintptr_t stream) {
        cuda::append_kv({k, v, k_cache, v_cache, slots}, stream_of(stream));
      },
      Unlocked());
  module.def(
      "join_append",
      [](const View& k_caches, const View& v_caches, const View& src_slots, const View& dst_slots, const View& cos,
         const View& sin, bool interleaved, uintptr_t stream) {
        cuda::join_append({k_caches, v_caches, src_slots, dst_slots, cos, sin, interleaved}, stream_of(stream));
      },
      Unlocked());
  module.def(
      "copy_pages",
      [](const View& k_caches, const View& v_caches, const View& src, const View& dst, uintptr_t stream) {
        cuda::copy_pages({k_caches, v_caches, src, dst}, stream_of(stream));
      },
      Unlocked());
  module.def(
      "merge_states",
      [](const View& outs, const View& lses, const View& out, const View& lse, uintptr_t stream) {
        cuda::merge_states({outs, lses, out, lse}, stream_of(stream));
      },
      Unlocked());
}

void bind_sample(py::module_& module) {
  module.def(
      "sample",
      [](py::handle args, const View& tokens, const View& logprobs, uintptr_t stream) {
        const Sample job = read_sample(args, tokens, logprobs);
        const py::gil_scoped_release unlocked;
        cuda::sample(job, stream_of(stream));
      },
      py::arg("args"), py::arg("tokens"), py::arg("logprobs"), py::arg("stream"));
}

void bind_attention(py::module_& module) {
  module.def(
      "tree_attention",
      [](py::handle args, const View& out, const View& lse, const View& part_out, const View& part_lse,
         const View& entry_of, uintptr_t stream) {
        const TreeAttention attention = read_tree_attention(args, out, lse);
        const py::gil_scoped_release unlocked;
        cuda::tree_attention(attention, {part_out, part_lse, entry_of}, stream_of(stream));
      },
      py::arg("args"), py::arg("out"), py::arg("lse"), py::arg("part_out"), py::arg("part_lse"), py::arg("entry_of"),
      py::arg("stream"));
  module.def(
      "paged_attention",
      [](py::handle args, const View& out, const View& lse, const View& part_out, const View& part_lse,
         uintptr_t stream) {
        const PagedAttention attention = read_paged_attention(args, out, lse);
        const py::gil_scoped_release unlocked;
        cuda::paged_attention(attention, {part_out, part_lse, {}}, stream_of(stream));
      },
      py::arg("args"), py::arg("out"), py::arg("lse"), py::arg("part_out"), py::arg("part_lse"), py::arg("stream"));
  module.def(
      "attention_shared",
      [](int itemsize, int64_t D, int64_t Dv, double rows, int64_t limit) {
        const DType dtype = itemsize == 4 ? DType::f32 : DType::bf16;
        const cuda::SharedPlan plan = cuda::attention_shared(dtype, D, Dv, rows, limit);
        return std::pair{plan.stages, plan.bytes};
      },
      py::arg("itemsize"), py::arg("head_dim"), py::arg("v_head_dim"), py::arg("rows"), py::arg("limit"),
      "Stages of the ring and bytes of shared memory of a block on a chip with `limit` bytes for one.");
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA kernels of asyncthink_kernels; called only by asyncthink_kernels.backends.cuda.";
  module.def("unavailable_reason", &unavailable_reason, "None where kernels can be launched, else one line.");
  module.attr("toolkit") = CUDART_VERSION;  // 1000 major + 10 minor
#ifdef ATK_EMULATED
  module.attr("emulated") = true;  // by the tests, on a CPU
#endif
  bind_cache_ops(module);
  bind_sample(module);
  bind_attention(module);
}
