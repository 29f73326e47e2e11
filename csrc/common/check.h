// Checks made before any memory is touched. Every message names the tensor, what was expected and what came.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "common/view.h"

namespace atk {

// Bad input; the bindings turn it into Python's ValueError.
struct Error : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

[[noreturn]] inline void fail(std::string_view name, const std::string& expected, const std::string& got) {
  throw Error(std::string(name) + ": expected " + expected + ", got " + got);
}

// Binds the shape letters of an op's tensors. The first use of a letter fixes its size, every later use is compared:
//   Sizes sizes;
//   sizes.bind("k", k, {"T", "H", "D"});
//   sizes.bind("v", v, {"T", "H", "Dv"});  // raises where T or H differ from k's
class Sizes {
 public:
  void bind(std::string_view name, const View& view, std::initializer_list<std::string_view> letters) {
    if (view.ndim != static_cast<int>(letters.size()))
      fail(name, std::to_string(letters.size()) + " dimensions " + spell(letters), std::to_string(view.ndim));
    int axis = 0;
    for (std::string_view letter : letters) bind_one(name, letter, axis, view.shape[axis]), ++axis;
  }

  int64_t operator[](std::string_view letter) const {
    for (int i = 0; i < count_; ++i)
      if (bound_[i].letter == letter) return bound_[i].size;
    throw std::logic_error("shape letter " + std::string(letter) + " was never bound");
  }

 private:
  struct Bound {
    std::string_view letter, owner;
    int64_t size;
  };

  static std::string spell(std::initializer_list<std::string_view> letters) {
    std::string text = "[";
    for (std::string_view letter : letters) text += (text.size() > 1 ? ", " : "") + std::string(letter);
    return text + "]";
  }

  void bind_one(std::string_view name, std::string_view letter, int axis, int64_t size) {
    for (int i = 0; i < count_; ++i) {
      if (bound_[i].letter != letter) continue;
      if (bound_[i].size == size) return;
      fail(name,
           std::string(letter) + " = " + std::to_string(bound_[i].size) + " in dimension " + std::to_string(axis) +
               ", as in " + std::string(bound_[i].owner),
           std::to_string(size));
    }
    if (count_ == kCapacity) throw std::logic_error("too many shape letters in one op");
    bound_[count_++] = {letter, name, size};
  }

  static constexpr int kCapacity = 24;
  Bound bound_[kCapacity] = {};
  int count_ = 0;
};

inline void check_size(std::string_view name, const std::string& expected, int64_t size, int64_t wanted) {
  if (size != wanted) fail(name, expected, std::to_string(size));
}

inline void check_dtype(std::string_view name, const View& view, DType expected) {
  if (view.dtype != expected) fail(name, dtype_name(expected), dtype_name(view.dtype));
}

// One of the three storage types; sums are float32 whichever it is.
inline void check_storage_dtype(std::string_view name, const View& view) {
  if (view.dtype != DType::f32 && view.dtype != DType::bf16 && view.dtype != DType::f16)
    fail(name, "float32, bfloat16 or float16", dtype_name(view.dtype));
}

// A row of the last dimension is read as one run.
inline void check_last_contiguous(std::string_view name, const View& view) {
  const int last = view.ndim - 1;
  if (view.shape[last] > 1 && view.strides[last] != 1)
    fail(name, "stride 1 in the last dimension", std::to_string(view.strides[last]));
}

inline void check_contiguous(std::string_view name, const View& view) {
  for (int axis = 0; axis < view.ndim; ++axis)
    if (view.shape[axis] == 0) return;
  int64_t run = 1;
  for (int axis = view.ndim - 1; axis >= 0; --axis) {
    if (view.shape[axis] > 1 && view.strides[axis] != run)
      fail(name, "contiguous memory (stride " + std::to_string(run) + " in dimension " + std::to_string(axis) + ")",
           std::to_string(view.strides[axis]));
    run *= view.shape[axis];
  }
}

// Every value of an int32 or int64 vector lies in [begin, end): slots, page ids and rows are never trusted.
inline void check_values(std::string_view name, const View& view, int64_t begin, int64_t end) {
  const auto scan = [&]<class T>(const T* values) {
    for (int64_t i = 0; i < view.shape[0]; ++i) {
      const int64_t value = values[i * view.strides[0]];
      if (value < begin || value >= end)
        fail(std::string(name) + "[" + std::to_string(i) + "]",
             "a value in [" + std::to_string(begin) + ", " + std::to_string(end) + ")", std::to_string(value));
    }
  };
  if (view.dtype == DType::i64) return scan(view.as<const int64_t>());
  if (view.dtype == DType::i32) return scan(view.as<const int32_t>());
  fail(name, "int32 or int64", dtype_name(view.dtype));
}

}  // namespace atk
