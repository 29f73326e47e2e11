#include "cuda/launch.h"
#include "cuda/ops.h"
#include "cuda/sample.cuh"
#include "cuda/words.h"

namespace atk::cuda {
namespace {

template <class T>
void draw(SampleJob job, const View& logits, unsigned rows, cudaStream_t stream) {
  constexpr int kWord = 16 / sizeof(T);
  const bool words = word_bytes({&logits}) == 16;
  job.chunk = chunk_of(job.V, words ? kWord : 1);
  launch("sample", words ? sample_rows<T, kWord> : sample_rows<T, 1>, dim3(rows), kSampleThreads, sizeof(SampleShared),
         stream, job);
}

}  // namespace

void sample(const Sample& a, cudaStream_t stream) {
  const Sizes sizes = a.check();
  const SampleJob job = {.logits = a.logits.data,
                         .row_stride = a.logits.strides[0],
                         .seeds = a.seeds.as<const int64_t>(),
                         .agents = a.agents.as<const int64_t>(),
                         .positions = a.positions.as<const int64_t>(),
                         .temperature = a.temperature.as<const float>(),
                         .top_k = a.top_k.as<const int32_t>(),
                         .top_p = a.top_p.as<const float>(),
                         .min_p = a.min_p.as<const float>(),
                         .tokens = a.tokens.as<int64_t>(),
                         .logprobs = a.logprobs.as<float>(),
                         .V = static_cast<int32_t>(sizes["V"]),
                         .chunk = 0};
  const auto rows = static_cast<unsigned>(sizes["N"]);
  if (rows == 0) return;
  switch (a.logits.dtype) {
    case DType::bf16:
      return draw<bf16>(job, a.logits, rows, stream);
    case DType::f16:
      return draw<f16>(job, a.logits, rows, stream);
    default:
      return draw<float>(job, a.logits, rows, stream);
  }
}

}  // namespace atk::cuda
