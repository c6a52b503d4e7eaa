#pragma once

// What every kernel of the indexer does with products, so that a score has the same bits whichever made it.

namespace Tributary::Impl::SM90 {

/// relu(NaN) = NaN.
__device__ inline float relu(float x) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
  return result;
}

/// sum + w0 relu(x[0]) + w1 relu(x[1])
__device__ inline float add_weighted(float sum, const float* x, float w0, float w1) {
  sum = fmaf(w0, relu(x[0]), sum);
  return fmaf(w1, relu(x[1]), sum);
}

/// One of two sums for itself, the other for the neighbour, who does the reverse.
__device__ inline float trade(bool upper, float low, float high, int distance) {
  const float keep = upper ? high : low, give = upper ? low : high;
  return keep + __shfl_xor_sync(0xffffffffu, give, distance);
}

}  // namespace Tributary::Impl::SM90
