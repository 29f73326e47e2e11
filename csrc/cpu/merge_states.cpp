#include <algorithm>
#include <vector>

#include "common/lse.h"
#include "cpu/ops.h"
#include "cpu/rows.h"
#include "cpu/threads.h"

namespace atk {
namespace {

constexpr int64_t kRowsPerDraw = 16;

}  // namespace

void merge_states(const MergeStates& a) {
  const Sizes sizes = a.check();

  const RowKernels::Typed& kernels = row_kernels().of(a.outs.dtype);
  const int64_t n = sizes["n"], H = sizes["H"], Dv = sizes["Dv"], size = element_size(a.outs.dtype);
  parallel_for(sizes["T"] * H, kRowsPerDraw, [&](int64_t work) {
    const int64_t t = work / H, h = work % H;
    const float* lses = a.lses.as<const float>() + t * a.lses.strides[1] + h * a.lses.strides[2];
    const char* rows = a.outs.as<const char>() + (t * a.outs.strides[1] + h * a.outs.strides[2]) * size;
    const auto lse_at = [&](int64_t i) { return lses[i * a.lses.strides[0]]; };
    const LseMerge merge = LseMerge::over(n, lse_at);

    thread_local std::vector<float> sum;
    sum.assign(Dv, 0.0f);
    for (int64_t i = 0; i < n; ++i)
      if (const float weight = merge.weight(lse_at(i)); weight != 0.0f)
        kernels.add_scaled(sum.data(), rows + i * a.outs.strides[0] * size, Dv, weight);
    kernels.store(a.out.as<char>() + (t * a.out.strides[0] + h * a.out.strides[1]) * size, sum.data(), Dv);
    a.lse.as<float>()[t * a.lse.strides[0] + h * a.lse.strides[1]] = merge.lse();
  });
}

}  // namespace atk
