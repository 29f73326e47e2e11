// ATK_HD marks the small functions that host and device share: written once, tested on a CPU.
//
// They are always inlined. Some sources are compiled once per instruction set, and an out-of-line copy of an inline
// function is merged by the linker across all of them: the AVX-512 copy could end up in the baseline's code.
#pragma once

#if defined(__CUDACC__) || defined(__HIPCC__)
#define ATK_HD __host__ __device__ __forceinline__
#else
#define ATK_HD inline __attribute__((always_inline))
#endif
