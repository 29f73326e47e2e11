// How a Python tensor becomes a View: by the four things it says of itself, data_ptr(), shape, stride() and dtype. So
// any torch will do, and none is needed to build. A View is valid for the length of the call that it is an argument of.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "common/check.h"
#include "common/view.h"

namespace atk {

namespace py = pybind11;

// dtypes are singletons: each is spelled out once, then known by its address.
inline DType read_dtype(py::handle tensor) {
  static const py::handle name(PyUnicode_InternFromString("dtype"));
  static std::vector<std::pair<PyObject*, DType>> known;
  const py::object dtype = py::getattr(tensor, name);
  for (const auto& [object, value] : known)
    if (object == dtype.ptr()) return value;
  const std::string spelled = py::str(dtype);
  for (DType value : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::i64, DType::u8})
    if (spelled == std::string("torch.") + dtype_name(value)) {
      known.emplace_back(dtype.inc_ref().ptr(), value);
      return value;
    }
  fail("dtype", "float32, bfloat16, float16, float64, int32, int64 or uint8", spelled);
}

inline void read_sizes(const py::object& sizes, int ndim, int64_t* to) {
  if (!PyTuple_Check(sizes.ptr()) || PyTuple_GET_SIZE(sizes.ptr()) != ndim)
    throw py::type_error("a tensor's shape and stride() must be tuples of one length");
  for (int axis = 0; axis < ndim; ++axis) to[axis] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), axis));
  if (PyErr_Occurred()) throw py::error_already_set();
}

inline py::object call(py::handle tensor, py::handle method) {
  PyObject* result = PyObject_CallMethodNoArgs(tensor.ptr(), method.ptr());
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

inline View read_view(py::handle tensor) {
  static const py::handle data_ptr(PyUnicode_InternFromString("data_ptr"));
  static const py::handle shape(PyUnicode_InternFromString("shape"));
  static const py::handle stride(PyUnicode_InternFromString("stride"));
  const py::object sizes = py::getattr(tensor, shape);
  const py::ssize_t ndim = py::len(sizes);
  if (ndim > kMaxDims) fail("shape", "at most " + std::to_string(kMaxDims) + " dimensions", std::to_string(ndim));
  View view{.data = PyLong_AsVoidPtr(call(tensor, data_ptr).ptr()), .ndim = static_cast<int>(ndim)};
  if (PyErr_Occurred()) throw py::error_already_set();
  read_sizes(sizes, view.ndim, view.shape);
  read_sizes(call(tensor, stride), view.ndim, view.strides);
  view.dtype = read_dtype(tensor);
  return view;
}

}  // namespace atk

template <>
struct pybind11::detail::type_caster<atk::View> {
  PYBIND11_TYPE_CASTER(atk::View, const_name("torch.Tensor"));

  bool load(handle source, bool) {
    if (source.is_none() || !hasattr(source, "data_ptr")) return false;  // a TypeError that shows the signature
    value = atk::read_view(source);
    return true;
  }
};
