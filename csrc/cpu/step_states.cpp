// The ops of a StepProgram on recurrent states in slots.
#include <algorithm>
#include <cstring>

#include "cpu/conv_update.h"
#include "cpu/delta_rule.h"
#include "cpu/step_program.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kBytesPerDraw = 64 << 10;

// The slot of each of B rows, which must be among S.
void check_slots(const StepInputs& in, int64_t B, int64_t S) {
  if (in.states.ndim != 1) fail("states", "the slots of " + std::to_string(B) + " rows", "none");
  check_size("states", std::to_string(B) + " slots", in.states.shape[0], B);
  check_values("states", in.states, 0, S);
}

int64_t slot_of(const StepInputs& in, int64_t row) {
  return in.states.as<const int64_t>()[row * in.states.strides[0]];
}

}  // namespace

void StepProgram::copy_states(const StateRows& a, bool load) {
  const Sizes sizes = a.check();
  const int64_t B = sizes["B"], S = sizes["S"], bytes = sizes["F"] * element_size(a.x.dtype);
  append(StepPart::states, [=](const StepInputs& in) {
    check_slots(in, B, S);
    const int64_t pieces = (bytes + kBytesPerDraw - 1) / kBytesPerDraw;
    const int64_t rows_a_draw = std::max<int64_t>(kBytesPerDraw / std::max<int64_t>(bytes, 1), 1);
    parallel_for(B * pieces, pieces > 1 ? 1 : rows_a_draw, [&](int64_t i) {
      const int64_t row = i / pieces, begin = i % pieces * kBytesPerDraw;
      char* const slot = a.states.as<char>() + slot_of(in, row) * bytes + begin;
      char* const x = a.x.as<char>() + row * bytes + begin;
      std::memcpy(load ? x : slot, load ? slot : x, std::min(kBytesPerDraw, bytes - begin));
    });
  });
}

void StepProgram::delta_rule(const DeltaRule& a) {
  const Sizes sizes = a.check();
  const int64_t B = sizes["B"], S = sizes["S"], H = sizes["H"], K = sizes["K"], V = sizes["V"];
  append(StepPart::states, [=](const StepInputs& in) {
    check_slots(in, B, S);
    const auto kernel = delta_rule_kernel().run;
    const int64_t draw = std::max<int64_t>(kBytesPerDraw / std::max<int64_t>(4 * K * V, 1), 1);
    parallel_for(B * H, draw, [&](int64_t i) {
      const int64_t b = i / H, h = i % H;
      const auto at = [&](const View& view) { return view.as<float>() + b * view.strides[0] + h * view.strides[1]; };
      kernel(a.states.as<float>() + (slot_of(in, b) * H + h) * K * V, at(a.decay), a.decay.strides[2], at(a.q), at(a.k),
             at(a.v), *at(a.beta), at(a.out), K, V, a.plain);
    });
  });
}

void StepProgram::conv_update(const ConvUpdate& a) {
  const Sizes sizes = a.check();
  const int64_t B = sizes["B"], S = sizes["S"], C = sizes["C"], K = sizes["K"], size = element_size(a.x.dtype);
  const void* const bias = a.bias ? a.bias->data : nullptr;
  const void* const table = a.table ? a.table->data : nullptr;
  const int64_t piece = std::max<int64_t>(kBytesPerDraw / 4 / (size * K), 1), pieces = (C + piece - 1) / piece;
  append(StepPart::states, [=](const StepInputs& in) {
    check_slots(in, B, S);
    const auto kernel = conv_update_kernels().of(a.x.dtype);
    parallel_for(B * pieces, 1, [&](int64_t i) {
      const int64_t b = i / pieces, c = i % pieces * piece;
      const auto at = [&](const View& view) {
        return view.as<char>() + (b * view.strides[0] + c * view.strides[1]) * size;
      };
      kernel(a.states.as<char>() + ((slot_of(in, b) * C + c) * K) * size, at(a.x), a.x.strides[1],
             a.weight.as<const char>() + c * K * size, bias ? static_cast<const char*>(bias) + c * size : nullptr,
             table, at(a.y), a.y.strides[1], std::min(piece, C - c), K, a.fused);
    });
  });
}

}  // namespace atk
