// Compiled once per instruction set: plain loops which the compiler vectorises for it.
#include "common/dtype.h"
#include "common/rope.h"
#include "cpu/rows.h"

namespace atk::ATK_ISA {
namespace {

template <class T, bool interleaved>
void rotate_row(void* dst, const void* src, int64_t D, const float* __restrict cos, const float* __restrict sin,
                int64_t R) {
  const T* __restrict x = static_cast<const T*>(src);
  T* __restrict y = static_cast<T*>(dst);
  for (int64_t i = 0; i < R; ++i) {
    const RopePair pair = rope_pair(i, R, interleaved);
    float a = to_float(x[pair.a]), b = to_float(x[pair.b]);
    rotate(a, b, cos[i], sin[i]);
    y[pair.a] = from_float<T>(a);
    y[pair.b] = from_float<T>(b);
  }
  for (int64_t d = 2 * R; d < D; ++d) y[d] = x[d];
}

template <class T>
void add_scaled(float* __restrict sum, const void* row, int64_t D, float weight) {
  const T* __restrict x = static_cast<const T*>(row);
  for (int64_t d = 0; d < D; ++d) sum[d] += weight * to_float(x[d]);
}

template <class T>
void store(void* dst, const float* __restrict sum, int64_t D) {
  T* __restrict y = static_cast<T*>(dst);
  for (int64_t d = 0; d < D; ++d) y[d] = from_float<T>(sum[d]);
}

template <class T>
constexpr RowKernels::Typed kTyped = {rotate_row<T, false>, rotate_row<T, true>, add_scaled<T>, store<T>};

}  // namespace

extern const RowKernels row_kernels = {kTyped<float>, kTyped<bf16>, kTyped<f16>};

}  // namespace atk::ATK_ISA
