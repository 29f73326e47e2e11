// The vector operations the kernels are written in. Each instruction set defines the same names in its own namespace,
// so that a kernel's source is compiled once for each; what follows from them is written once, here.
#pragma once

#if defined(__AVX512F__)
#include "cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "cpu/simd_avx2.h"
#else
#include "cpu/simd_scalar.h"
#endif

namespace atk::ATK_ISA {

// 2^x for x <= 127 with a relative error below 2e-7; x < -126 counts as -126, and a NaN stays one.
// x = n + f with |f| <= 1/2: adding 1.5 * 2^23 rounds to n and leaves it in the low bits; 2^f is a polynomial (minimax,
// 9e-8).
inline Vec exp2(Vec x) {
  const Vec round = splat(12582912.0f);
  x = max(splat(-126.0f), x);  // of a NaN and a number, max takes the second
  const Vec biased = add(x, round);
  const Vec f = sub(x, sub(biased, round));
  Vec y = splat(1.3264710242e-3f);
  y = fma(y, f, splat(9.6715075241e-3f));
  y = fma(y, f, splat(5.5507337372e-2f));
  y = fma(y, f, splat(2.4022242164e-1f));
  y = fma(y, f, splat(6.9314697764e-1f));
  y = fma(y, f, splat(1.0f));
  return fma(x, splat(0.0f), times_power_of_two(y, biased));  // + 0, or NaN
}

// tanh(x) = 1 - 2 / (1 + e^2x), and near 0, where that cancels, x plus an odd polynomial (minimax, 5e-9): a relative
// error below 4e-7 everywhere. A NaN stays one.
inline Vec tanh(Vec x) {
  const Vec zero = splat(0.0f), one = splat(1.0f);
  const Vec bounded = max(splat(-20.0f), sub(zero, max(splat(-20.0f), sub(zero, x))));
  const Vec power = exp2(mul(bounded, splat(2.8853900818f)));  // 2 log2(e)
  const Vec quotient = sub(one, div(splat(2.0f), add(one, power)));
  const Vec square = mul(x, x);
  Vec y = splat(-5.7049850125e-3f);
  y = fma(y, square, splat(2.0639085495e-2f));
  y = fma(y, square, splat(-5.3739714554e-2f));
  y = fma(y, square, splat(1.3331442192e-1f));
  y = fma(y, square, splat(-3.3333281942e-1f));
  const Vec series = fma(mul(x, square), y, x);
  return select_less(square, splat(0.390625f), series, quotient);  // |x| < 0.625
}

}  // namespace atk::ATK_ISA
