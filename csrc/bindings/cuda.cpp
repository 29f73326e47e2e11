// asyncthink_kernels._cuda. The CUDA runtime is linked statically and looks for the driver at the first call: importing
// works on any machine, and why_not() says what is missing. Streams are integers (cudaStream_t).
#include "bindings/view.h"
#include "cuda/ops.h"

namespace {

using namespace atk;
using Unlocked = py::call_guard<py::gil_scoped_release>;

std::optional<std::string> why_not() {
  int driver = 0, devices = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no driver";
  if (const cudaError_t status = cudaGetDeviceCount(&devices); status != cudaSuccess) return cudaGetErrorString(status);
  if (devices == 0) return "no device";
  return std::nullopt;
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA kernels of asyncthink_kernels; called by asyncthink_kernels.backends.native alone.";
  module.def("why_not", &why_not, "None where kernels can be launched, else one line.");
  module.def(
      "append_kv",
      [](const View& k, const View& v, const View& k_cache, const View& v_cache, const View& slots, uintptr_t stream) {
        cuda::append_kv({.k = k, .v = v, .k_cache = k_cache, .v_cache = v_cache, .slots = slots},
                        reinterpret_cast<cudaStream_t>(stream));
      },
      py::arg("k"), py::arg("v"), py::arg("k_cache"), py::arg("v_cache"), py::arg("slots"), py::arg("stream"),
      Unlocked());
}
