#include "common/slots.h"
#include "cuda/attention.h"

namespace atk::cuda {

void paged_attention(const PagedAttention& a, const Partials& partials, cudaStream_t stream) {
  const Sizes sizes = a.check();
  const int64_t rows = sizes["B"], splits = ceil_div(sizes["M"] * sizes["S"], a.chunk);
  AttentionJob job = attention_job(a, partials, rows * splits);
  if (rows == 0) return;
  job.block_tables = a.block_tables.as<const int32_t>();
  job.seq_lens = a.seq_lens.as<const int32_t>();
  job.table_stride = a.block_tables.strides[0];
  job.chunk = a.chunk;
  job.splits = splits;
  if (splits > 0) attend_items({job, a.q.dtype, rows * splits, static_cast<double>(job.G), "paged_attention"}, stream);
  ReduceJob reduce = reduce_job(a, partials, rows * splits);
  reduce.seq_lens = job.seq_lens;
  reduce.splits = splits;
  reduce.chunk = a.chunk;
  reduce_partials("paged_attention", a.q.dtype, reduce, stream);
}

}  // namespace atk::cuda
