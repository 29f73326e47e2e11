#include "cpu/step_program.h"

#include <algorithm>
#include <chrono>

#include "cpu/step_rows.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kBytesPerDraw = 16 << 10;  // as float32; less is computed faster than a thread wakes

// fn(t, h) for T x H rows of I elements.
template <class Fn>
void for_rows(int64_t T, int64_t H, int64_t I, const Fn& fn) {
  const int64_t draw = std::max<int64_t>(kBytesPerDraw / std::max<int64_t>(4 * I, 1), 1);
  parallel_for(T * H, draw, [&](int64_t row) { fn(row / H, row % H); });
}

char* row_of(const View& view, int64_t t, int64_t h = 0) {
  const int64_t offset = t * view.strides[0] + (view.ndim > 2 ? h * view.strides[1] : 0);
  return view.as<char>() + offset * element_size(view.dtype);
}

}  // namespace

void StepProgram::norm(const RmsNorm& a) {
  const Sizes sizes = a.check();
  const int64_t T = sizes["T"], H = sizes["H"], I = sizes["I"];
  append(StepPart::rows, [=](const StepInputs&) {
    const auto kernel = step_row_kernels().of(a.x.dtype).norm;
    for_rows(T, H, I, [&](int64_t t, int64_t h) {
      kernel(row_of(a.x, t, h), a.weight.data, row_of(a.y, t, h), I, a.eps, a.lanes, a.wide, a.offset);
    });
  });
}

void StepProgram::l2_norm(const L2Norm& a) {
  const Sizes sizes = a.check();
  const int64_t T = sizes["T"], H = sizes["H"], I = sizes["I"];
  append(StepPart::rows, [=](const StepInputs&) {
    const auto kernel = step_row_kernels().of(a.x.dtype).l2_norm;
    for_rows(T, H, I, [&](int64_t t, int64_t h) {
      float* const y = a.y.as<float>() + t * a.y.strides[0] + h * a.y.strides[1];
      kernel(row_of(a.x, t, h), y, I, a.eps, a.divisor, a.lanes);
    });
  });
}

void StepProgram::rotate(const Rotate& a) {
  const Sizes sizes = a.check();
  const int64_t T = sizes["T"], H = sizes["H"], D = sizes["D"];
  append(StepPart::rows, [=](const StepInputs&) {
    const auto kernel = step_row_kernels().of(a.x.dtype).rotate;
    for_rows(T, H, D, [&](int64_t t, int64_t h) {
      kernel(row_of(a.x, t, h), row_of(a.cos, t), row_of(a.sin, t), row_of(a.y, t, h), D);
    });
  });
}

void StepProgram::gate(const Gate& a) {
  const Sizes sizes = a.check();
  const int64_t T = sizes["T"], I = sizes["I"];
  append(StepPart::rows, [=](const StepInputs&) {
    const auto kernel = step_row_kernels().of(a.gate.dtype).gate;
    for_rows(T, 1, I,
             [&](int64_t t, int64_t) { kernel(row_of(a.gate, t), row_of(a.up, t), a.table.data, row_of(a.y, t), I); });
  });
}

void StepProgram::gate_wide(const GateWide& a) {
  const Sizes sizes = a.check();
  const int64_t T = sizes["T"], I = sizes["I"];
  append(StepPart::rows, [=](const StepInputs&) {
    const auto kernel = step_row_kernels().of(a.x.dtype).gate_wide;
    for_rows(T, 1, I, [&](int64_t t, int64_t) {
      kernel(row_of(a.x, t), row_of(a.gate, t), a.table.as<const float>(), row_of(a.y, t), I);
    });
  });
}

void StepProgram::add(const Add& a) {
  const Sizes sizes = a.check();
  const int64_t T = sizes["T"], I = sizes["I"];
  append(StepPart::rows, [=](const StepInputs&) {
    const auto kernel = step_row_kernels().of(a.a.dtype).add;
    for_rows(T, 1, I, [&](int64_t t, int64_t) { kernel(row_of(a.a, t), row_of(a.b, t), row_of(a.y, t), I); });
  });
}

void StepProgram::linears(std::vector<PackedLinear> layers) {
  for (const PackedLinear& layer : layers) layer.check();
  append(StepPart::linear, [layers = std::move(layers)](const StepInputs&) {
    packed_linears(layers.data(), static_cast<int64_t>(layers.size()));
  });
}

void StepProgram::quantized_linears(std::vector<QuantizedLinear> layers, const View& workspace) {
  for (const QuantizedLinear& layer : layers) layer.check();
  append(StepPart::linear, [layers = std::move(layers), workspace](const StepInputs&) {
    atk::quantized_linears(layers.data(), static_cast<int64_t>(layers.size()), workspace);
  });
}

void StepProgram::attention(const View& k, const View& v, const Attention& a, int64_t layer) {
  Sizes sizes;
  a.check(sizes, "T");
  append(StepPart::append, [=](const StepInputs& in) {
    append_kv({.k = k, .v = v, .k_cache = a.k_cache, .v_cache = a.v_cache, .slots = in.slots});
  });
  append(StepPart::attention, [=](const StepInputs& in) {
    TreeAttention call{a,         in.items,     in.pages,    in.entries, in.row_ptr, in.positions,
                       in.shifts, std::nullopt, std::nullopt};
    if (!in.angles.empty() && in.angles.at(layer)) {
      const StepAngles& angles = *in.angles[layer];
      call.cos = angles.cos, call.sin = angles.sin, call.options.interleaved = angles.interleaved;
    }
    tree_attention(call, in.workspace);
  });
}

void StepProgram::run(const StepInputs& inputs) {
  auto before = std::chrono::steady_clock::now();
  for (const auto& [part, work] : ops_) {
    work(inputs);
    const auto after = std::chrono::steady_clock::now();
    seconds_[static_cast<int>(part)] += std::chrono::duration<double>(after - before).count();
    before = after;
  }
}

}  // namespace atk
