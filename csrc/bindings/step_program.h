// StepProgram in Python: ops are appended by name, a run takes the plan.
#pragma once

#include "bindings/view.h"
#include "cpu/step_program.h"

namespace atk {

inline void bind_step_program(py::module_& module) {
  py::class_<StepProgram>(module, "step_program")
      .def(py::init<>())
      .def("norm",
           [](StepProgram& self, const View& x, const View& weight, const View& y, float eps, int lanes, bool wide,
              float offset) {
             self.norm({.x = x, .y = y, .weight = weight, .eps = eps, .lanes = lanes, .wide = wide, .offset = offset});
           })
      .def("l2_norm", [](StepProgram& self, const View& x, const View& y, float eps, float divisor,
                         int lanes) { self.l2_norm({.x = x, .y = y, .eps = eps, .divisor = divisor, .lanes = lanes}); })
      .def("rotate", [](StepProgram& self, const View& x, const View& cos, const View& sin,
                        const View& y) { self.rotate({.x = x, .y = y, .cos = cos, .sin = sin}); })
      .def("gate", [](StepProgram& self, const View& gate, const View& up, const View& table,
                      const View& y) { self.gate({.gate = gate, .up = up, .y = y, .table = table}); })
      .def("gate_wide", [](StepProgram& self, const View& x, const View& gate, const View& table,
                           const View& y) { self.gate_wide({.x = x, .gate = gate, .y = y, .table = table}); })
      .def("add",
           [](StepProgram& self, const View& a, const View& b, const View& y) { self.add({.a = a, .b = b, .y = y}); })
      .def("linears",
           [](StepProgram& self, const View& x, const std::vector<std::tuple<View, OptionalView, View>>& parts) {
             std::vector<PackedLinear> layers;
             for (const auto& [packed, bias, out] : parts)
               layers.push_back({.x = x, .packed = packed, .bias = bias, .out = out});
             self.linears(std::move(layers));
           })
      .def("quantized_linears",
           [](StepProgram& self, const View& x,
              const std::vector<std::tuple<View, View, OptionalView, OptionalView, View>>& parts,
              const View& workspace) {
             std::vector<QuantizedLinear> layers;
             for (const auto& [quants, scales, mins, bias, out] : parts)
               layers.push_back({.x = x, .quants = quants, .scales = scales, .mins = mins, .bias = bias, .out = out});
             self.quantized_linears(std::move(layers), workspace);
           })
      .def("attention",
           [](StepProgram& self, const View& q, const View& k, const View& v, const View& k_cache, const View& v_cache,
              const View& out, const View& lse, float scale, std::optional<int64_t> window,
              std::optional<float> softcap, const OptionalView& sinks, int64_t layer) {
             const AttentionOptions options = {
                 .scale = scale, .window = window.value_or(0), .softcap = softcap.value_or(0.0f), .interleaved = false};
             self.attention(k, v,
                            {.q = q,
                             .k_cache = k_cache,
                             .v_cache = v_cache,
                             .sinks = sinks,
                             .out = out,
                             .lse = lse,
                             .options = options},
                            layer);
           })
      .def("load_states", [](StepProgram& self, const View& states,
                             const View& x) { self.copy_states({.states = states, .x = x}, true); })
      .def("store_states", [](StepProgram& self, const View& states,
                              const View& x) { self.copy_states({.states = states, .x = x}, false); })
      .def("delta_rule",
           [](StepProgram& self, const View& states, const View& decay, const View& q, const View& k, const View& v,
              const View& beta, const View& out, int64_t plain) {
             self.delta_rule(
                 {.states = states, .decay = decay, .q = q, .k = k, .v = v, .out = out, .beta = beta, .plain = plain});
           })
      .def("conv_update",
           [](StepProgram& self, const View& states, const View& x, const View& weight, const OptionalView& bias,
              const OptionalView& table, const View& y, bool fused) {
             self.conv_update(
                 {.states = states, .x = x, .weight = weight, .bias = bias, .table = table, .y = y, .fused = fused});
           })
      .def("__len__", &StepProgram::size)
      .def_property_readonly("seconds", &StepProgram::seconds)
      .def(
          "run",
          [](StepProgram& self, const View& slots, const std::vector<View>& plan, const View& workspace,
             const std::vector<std::optional<std::tuple<View, View, bool>>>& angles, const OptionalView& states) {
            StepInputs inputs = {.slots = slots,
                                 .states = states.value_or(View{}),
                                 .items = plan.at(0),
                                 .pages = plan.at(1),
                                 .entries = plan.at(2),
                                 .row_ptr = plan.at(3),
                                 .positions = plan.at(4),
                                 .shifts = plan.at(5),
                                 .workspace = workspace,
                                 .angles = {}};
            for (const auto& one : angles)
              inputs.angles.push_back(
                  one ? std::optional<StepAngles>(
                            {.cos = std::get<0>(*one), .sin = std::get<1>(*one), .interleaved = std::get<2>(*one)})
                      : std::nullopt);
            const py::gil_scoped_release unlocked;
            self.run(inputs);
          },
          py::arg("slots"), py::arg("plan"), py::arg("workspace"), py::arg("angles"), py::arg("states"));
}

}  // namespace atk
