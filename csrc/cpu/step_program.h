// A part of a decoder's step as a list of ops on fixed memory, recorded once and run in every step: so a step costs
// neither Python nor the reading of tensors' sizes. What differs between steps (the plan) comes with each run.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "common/step_rows.h"
#include "cpu/ops.h"

namespace atk {

struct StepAngles {
  View cos, sin;  // [K, R] float32
  bool interleaved;
};

// What a run is given.
struct StepInputs {
  View slots;                                              // [T] int64
  View items, pages, entries, row_ptr, positions, shifts;  // the plan's, see common/attention.h
  View workspace;                                          // float32, for attention
  std::vector<std::optional<StepAngles>> angles;           // of each attention layer; empty: none has any
};

// What a run's time is told apart by.
enum class StepPart { linear, append, attention, rows };
constexpr int kStepParts = 4;

class StepProgram {
 public:
  // Each appends an op. Arguments are checked here, once; their memory must stay where it is.
  void norm(const RmsNorm& a);
  void rotate(const Rotate& a);
  void gate(const Gate& a);
  void add(const Add& a);
  void linears(std::vector<PackedLinear> layers);
  void quantized_linears(std::vector<QuantizedLinear> layers, const View& workspace);
  // Slots and plan are those of the run; `layer` counts the attention layers of the model.
  void attention(const View& k, const View& v, const Attention& a, int64_t layer);

  int64_t size() const { return static_cast<int64_t>(ops_.size()); }
  void run(const StepInputs& inputs);
  // Of all runs so far, by StepPart.
  const std::array<double, kStepParts>& seconds() const { return seconds_; }

 private:
  using Work = std::function<void(const StepInputs&)>;
  void append(StepPart part, Work work) { ops_.emplace_back(part, std::move(work)); }

  std::vector<std::pair<StepPart, Work>> ops_;
  std::array<double, kStepParts> seconds_ = {};
};

}  // namespace atk
