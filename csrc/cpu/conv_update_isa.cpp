// Compiled once per instruction set.
#include <cmath>
#include <type_traits>

#include "common/dtype.h"
#include "cpu/conv_update.h"

namespace atk::ATK_ISA {
namespace {

// Four tokens, which is what models have, as a constant: the compiler unrolls their loops.
template <class T, bool Fused, class Length>
void channels(T* __restrict state, const T* __restrict x, int64_t x_stride, const T* __restrict weight,
              const T* __restrict bias, const T* __restrict table, T* __restrict y, int64_t y_stride, int64_t C,
              Length K) {
  for (int64_t c = 0; c < C; ++c) {
    T* const window = state + c * K;
    for (int64_t k = 0; k + 1 < K; ++k) window[k] = window[k + 1];
    window[K - 1] = x[c * x_stride];
    float sum = bias ? to_float(bias[c]) : 0.0f;
    for (int64_t k = 0; k < K; ++k) {
      const float a = to_float(window[k]), b = to_float(weight[c * K + k]);
      sum = Fused ? std::fma(a, b, sum) : sum + a * b;
    }
    T result = from_float<T>(sum);
    if constexpr (!std::is_same_v<T, float>)
      if (table) result = table[result.bits];
    y[c * y_stride] = result;
  }
}

template <class T>
void run(void* state, const void* x, int64_t x_stride, const void* weight, const void* bias, const void* table, void* y,
         int64_t y_stride, int64_t C, int64_t K, bool fused) {
  const auto call = [&]<bool Fused>(auto length) {
    channels<T, Fused>(static_cast<T*>(state), static_cast<const T*>(x), x_stride, static_cast<const T*>(weight),
                       static_cast<const T*>(bias), static_cast<const T*>(table), static_cast<T*>(y), y_stride, C,
                       length);
  };
  const std::integral_constant<int64_t, 4> four;
  if (fused)
    K == 4 ? call.template operator()<true>(four) : call.template operator()<true>(K);
  else
    K == 4 ? call.template operator()<false>(four) : call.template operator()<false>(K);
}

}  // namespace

extern const ConvUpdateKernels conv_update_kernels = {run<float>, run<bf16>, run<f16>};

}  // namespace atk::ATK_ISA
