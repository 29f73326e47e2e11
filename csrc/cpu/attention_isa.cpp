// The attention kernels of one instruction set, as a table: the only file of the kernels that is compiled by itself.
#include "cpu/attention_unit.h"

namespace atk::ATK_ISA {
namespace {

template <class Fn>
auto with_storage(DType dtype, const Fn& fn) {
  if (dtype == DType::bf16) return fn(bf16{});
  if (dtype == DType::f16) return fn(f16{});
  return fn(float{});
}

size_t scratch_bytes(const AttentionProblem& problem, const AttentionUnit& unit) {
  return with_storage(problem.dtype,
                      [&]<class Storage>(Storage) { return Scratch<Storage>(nullptr, problem, unit).bytes; });
}

void attend(const AttentionProblem& problem, const AttentionUnit& unit, const AttentionUnit* following, void* scratch) {
  with_storage(problem.dtype, [&]<class Storage>(Storage) { Unit<Storage>(problem, unit, following, scratch).run(); });
}

void reduce(const AttentionProblem& problem, int64_t row, int64_t head) {
  with_storage(problem.dtype, [&]<class Storage>(Storage) { reduce_row<Storage>(problem, row, head); });
}

}  // namespace

extern const AttentionKernels attention_kernels = {scratch_bytes, attend, reduce};

}  // namespace atk::ATK_ISA
