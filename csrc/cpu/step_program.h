// A part of a decoder's step as a list of ops on fixed memory, recorded once and run in every step: so a step costs
// neither Python nor the reading of tensors' sizes. What differs between steps (the plan) comes with each run.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "common/step_rows.h"
#include "common/step_states.h"
#include "cpu/ops.h"

namespace atk {

struct StepAngles {
  View cos, sin;  // [K, R] float32
  bool interleaved;
};

// What a run is given.
struct StepInputs {
  View slots;                                              // [T] int64
  View states;                                             // [B] int64: the state slot of each row; empty: none
  View items, pages, entries, row_ptr, positions, shifts;  // the plan's, see common/attention.h
  View workspace;                                          // float32, for attention
  std::vector<std::optional<StepAngles>> angles;           // of each attention layer; empty: none has any
};

// What a run's time is told apart by.
enum class StepPart { linear, append, attention, rows, states };
constexpr int kStepParts = 5;

class StepProgram {
 public:
  // Each appends an op. Arguments are checked here, once; their memory must stay where it is.
  void norm(const RmsNorm& a);
  void l2_norm(const L2Norm& a);
  void rotate(const Rotate& a);
  void gate(const Gate& a);
  void gate_wide(const GateWide& a);
  void add(const Add& a);
  void linears(std::vector<PackedLinear> layers);
  void quantized_linears(std::vector<QuantizedLinear> layers, const View& workspace);
  // Slots and plan are those of the run; `layer` counts the attention layers of the model.
  void attention(const View& k, const View& v, const Attention& a, int64_t layer);

  // x = states[slots] (load) or states[slots] = x; slots are those of the run.
  void copy_states(const StateRows& a, bool load);
  void delta_rule(const DeltaRule& a);
  void conv_update(const ConvUpdate& a);

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
