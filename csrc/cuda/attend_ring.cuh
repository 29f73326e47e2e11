// Each warp's ring of K and V in shared memory, filled by asynchronous copies. A warp takes the same tokens of every
// block of an item (its `slice`), so it waits for no other warp.
#pragma once

#include "common/slots.h"
#include "cuda/attention_tile.cuh"

namespace atk::cuda {

// kTokens rows of K [BD] and V [BDV], each padded by 16 bytes: eight rows then lie on different banks.
template <class T, int BD, int BDV, int kTokens>
struct Stage {
  static constexpr int kPad = 16 / sizeof(T);
  static constexpr int kK = BD + kPad, kV = BDV + kPad;  // strides
  T k[kTokens][kK];
  T v[kTokens][kV];
};

template <int kTokens, int B, class T>
__device__ __forceinline__ void load_rows(T* to, int stride, const T* data, int64_t at, int size, bool aligned,
                                          int first, int low, int high) {
  constexpr int n = 16 / sizeof(T), kPieces = B / n;
  const int lane = threadIdx.x % kWarp;
  static_assert(kTokens * kPieces % kWarp == 0);
#pragma unroll 4  // all at once would keep all addresses in registers
  for (int i = 0; i < kTokens * kPieces / kWarp; ++i) {
    const int piece = i * kWarp + lane, token = piece / kPieces, d = piece % kPieces * n;
    const int64_t row = shuffle(at, token);  // lane t knows the address of token t
    const bool there = first + token >= low && first + token < high && d < size;
    if (aligned) {
      copy_async(to + token * stride + d, data + (there ? row + d : 0), there);
    } else {
#pragma unroll
      for (int j = 0; j < n; ++j)
        to[token * stride + d + j] = there && d + j < size ? data[row + d + j] : from_float<T>(0.0f);
    }
  }
}

// Tokens [first, first + kTokens) of the item, zeros where they are not in [low, high).
template <class T, int BD, int BDV, int kTokens>
__device__ __forceinline__ void load_stage(Stage<T, BD, BDV, kTokens>& stage, const AttentionJob& job, const Work& work,
                                           int head, int first, int low, int high) {
  const int lane = threadIdx.x % kWarp, token = first + lane;
  int64_t k_at = 0, v_at = 0;
  if (lane < kTokens && token >= low && token < high) {
    const int64_t place = static_cast<int64_t>(work.offset) + token, S = job.k_layout.page_size;
    const int64_t slot = slot_of(work.pages[page_of(place, S)], offset_of(place, S), S);
    k_at = job.k_layout.row(slot, head), v_at = job.v_layout.row(slot, head);
  }
  load_rows<kTokens, BD>(&stage.k[0][0], stage.kK, static_cast<const T*>(job.k), k_at, job.D, job.aligned, first, low,
                         high);
  load_rows<kTokens, BDV>(&stage.v[0][0], stage.kV, static_cast<const T*>(job.v), v_at, job.Dv, job.aligned, first, low,
                          high);
}

__device__ __forceinline__ void wait_for_oldest(int stages) {
  switch (stages) {
    case 1:
      return copy_wait<0>();
    case 2:
      return copy_wait<1>();
    case 3:
      return copy_wait<2>();
    default:
      return copy_wait<3>();
  }
}

constexpr int kMaxStages = 4;

// Calls take(stage, first token) for the warp's slice of every block that meets [low, high), loads running ahead.
template <class T, int BD, int BDV, int kTokens, class Take>
__device__ __forceinline__ void for_slices(Stage<T, BD, BDV, kTokens>* ring, const AttentionJob& job, const Work& work,
                                           int head, int low, int high, const Take& take) {
  constexpr int kBlock = kWarps * kTokens;  // blocks begin at multiples of it, whoever looks
  const int slice = threadIdx.x / kWarp * kTokens, start = low / kBlock * kBlock + slice;
  const int blocks = high > low ? (high - low / kBlock * kBlock + kBlock - 1) / kBlock : 0;
  const auto load = [&](int block) {
    const int first = start + block * kBlock;
    if (block < blocks && first < high && first + kTokens > low)
      load_stage(ring[block % job.stages], job, work, head, first, low, high);
    copy_commit();
  };
  for (int block = 0; block < job.stages - 1; ++block) load(block);
  for (int block = 0; block < blocks; ++block) {
    load(block + job.stages - 1);
    wait_for_oldest(job.stages);
    sync_warp();
    const int first = start + block * kBlock;
    if (first < high && first + kTokens > low) take(ring[block % job.stages], first);
    sync_warp();  // all have read before the next load overwrites
  }
  copy_wait<0>();
}

}  // namespace atk::cuda
