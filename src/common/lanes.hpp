#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <utility>

// Vectors for the inner loops of portable kernels, and the register block of a matrix product.  On a host they are the compiler's
// vector type, because GCC does not reliably vectorise the same loops over arrays (measured: 3 to 90 GFLOP/s for neighbouring block
// sizes); on a device a thread is one lane.

namespace Tributary::Impl {

template <bool OnHost>
struct Lanes;

template <>
struct Lanes<false> {
  static constexpr int width = 1, registers = 64;
  using Float = float;

  KOKKOS_INLINE_FUNCTION static Float kept(Float x) { return x; }
  KOKKOS_INLINE_FUNCTION static void  exp(Float& x) { x = Kokkos::exp(x); }
  KOKKOS_INLINE_FUNCTION static void  transpose(Float (&)[width]) {}
  KOKKOS_INLINE_FUNCTION static float maximum(Float x) { return x; }
  KOKKOS_INLINE_FUNCTION static float sum(Float x) { return x; }

  /// Which of 32 lanes at most are not <= limit: bit v * width + n stands for lane n of x[v].  NaN is not, and nothing is <= NaN.
  template <int vectors>
  KOKKOS_INLINE_FUNCTION static std::uint32_t exceed(const Float (&x)[vectors], float limit) {
    static_assert(vectors * width <= 32);
    std::uint32_t bits = 0;
    for (int v = 0; v < vectors; ++v) bits |= (x[v] <= limit ? 0u : 1u) << v;
    return bits;
  }
};

#if defined(KOKKOS_COMPILER_NVCC) && defined(__CUDA_ARCH__)
// nvcc reads every source twice, and when it reads for the device it refuses vector types even in functions that only a host space
// calls.  It makes no code of those, so there anything of the same interface will do; the host's code comes from the other reading.
template <>
struct Lanes<true> : Lanes<false> {};
#else
// nvcc's front end mistakes the type of a shuffle whose lanes are a pack.
#if (defined(__clang__) || __GNUC__ >= 12) && !defined(KOKKOS_COMPILER_NVCC)
#define TRIBUTARY_SHUFFLES
#endif
template <>
struct Lanes<true> {
#if defined(__AVX512F__)
  static constexpr int width = 16, registers = 32;
#elif defined(__AVX__)
  static constexpr int width = 8, registers = 16;
#elif defined(__aarch64__)
  static constexpr int width = 4, registers = 32;
#else
  static constexpr int width = 4, registers = 16;
#endif
  using Float = float __attribute__((vector_size(width * sizeof(float))));
  using Bits  = std::uint32_t __attribute__((vector_size(width * sizeof(float))));

  /// x in a register, where GCC would read it from memory again for each use.
  static inline Float kept(Float x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
    return x;
  }

  /// e^x to about one unit in the last place, for x up to 88; 0 below -87.  Cephes' expf: 2^n times a polynomial of the rest.
  static inline void exp(Float& x) {
    constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Float     shifted    = x * 1.44269504088896341f + to_integer;
    const Float     n          = shifted - to_integer;
    const Float     r          = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Float           y          = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y                          = y * r + 8.3334519073e-3f;
    y                          = y * r + 4.1665795894e-2f;
    y                          = y * r + 1.6666665459e-1f;
    y                          = y * r + 5.0000001201e-1f;
    y                          = y * (r * r) + r + 1.0f;
    const Float power          = reinterpret_cast<Float>(reinterpret_cast<Bits>(y) + (reinterpret_cast<Bits>(shifted) << 23));
    x                          = x < -87.0f ? Float{} : power;
  }

  static inline float maximum(const Float& x) {
    return fold<float, width / 2>(x, [](const Float& a, const Float& b) { return a > b ? a : b; });
  }
  static inline float sum(const Float& x) {
    return fold<float, width / 2>(x, [](const Float& a, const Float& b) { return a + b; });
  }

  /// Which of 32 lanes at most are not <= limit: bit v * width + n stands for lane n of x[v].  NaN is not, and nothing is <= NaN.
  template <int vectors>
  static inline std::uint32_t exceed(const Float (&x)[vectors], float limit) {
    static_assert(vectors * width <= 32);
    Bits bits = {};
    for (int v = 0; v < vectors; ++v) {
      Bits bit;
      for (int n = 0; n < width; ++n) bit[n] = 1u << (v * width + n);
      bits |= x[v] <= limit ? Bits{} : bit;
    }
    return fold<std::uint32_t, width / 2>(bits, [](const Bits& a, const Bits& b) { return a | b; });
  }

  /// Element c of vector r and element r of vector c change places.
  static inline void transpose(Float (&square)[width]) {
#if defined(TRIBUTARY_SHUFFLES)
    transpose_from<1>(square);
#else
    for (int r = 0; r < width; ++r)
      for (int c = 0; c < r; ++c) {
        const float below = square[r][c];
        square[r][c]      = square[c][r];
        square[c][r]      = below;
      }
#endif
  }

 private:
  /// All lanes combined: the lanes `half` apart, then half as far.
  template <class Number, int half, class Vector, class Combine>
  static inline Number fold(const Vector& x, const Combine& combine) {
#if defined(TRIBUTARY_SHUFFLES)
    const Vector folded = combine(x, across<half>(x, std::make_integer_sequence<int, width>{}));
#else
    Vector other = x;
    for (int n = 0; n < half; ++n) other[n] = x[n + half];
    const Vector folded = combine(x, other);
#endif
    if constexpr (half == 1)
      return folded[0];
    else
      return fold<Number, half / 2>(folded, combine);
  }
#if defined(TRIBUTARY_SHUFFLES)
  template <int half, class Vector, int... lane>
  static inline Vector across(const Vector& x, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(x, x, ((lane + half) % width)...);
  }
  // Squares of `half` by `half` numbers change places across the diagonal of one twice as wide; then the wider ones.
  template <int half>
  static inline void transpose_from(Float (&square)[width]) {
    constexpr auto lanes = std::make_integer_sequence<int, width>{};
    for (int r = 0; r < width; ++r)
      if ((r & half) == 0) exchange<half>(square[r], square[r + half], lanes);
    if constexpr (2 * half < width) transpose_from<2 * half>(square);
  }
  template <int half, int... lane>
  static inline void exchange(Float& upper, Float& lower, std::integer_sequence<int, lane...>) {
    const Float a = upper, b = lower;
    upper = __builtin_shufflevector(a, b, ((lane & half) == 0 ? lane : width + lane - half)...);
    lower = __builtin_shufflevector(a, b, ((lane & half) == 0 ? lane + half : width + lane)...);
  }
#endif
};
#undef TRIBUTARY_SHUFFLES
#endif

/// Asks the host's memory for the line of an address, which is soon to be read.
KOKKOS_INLINE_FUNCTION void prefetch([[maybe_unused]] const void* address) { KOKKOS_IF_ON_HOST((__builtin_prefetch(address);)) }

/// The register block of a matrix product C = A B: some rows of A against a few vectors of B's columns.  It fills most of the
/// register file: 8 x 2 of 32 AVX-512 registers (on one Zen 4 core 112 GFLOP/s, where OpenBLAS' SGEMM reaches 100), 12 of 16 AVX
/// ones, 8 x 4 scalars of a GPU thread.
/// avx_rows: 4 rows x 3 vectors or 6 x 2 with AVX, whichever wastes less at the edges.
template <bool OnHost, int avx_rows = 4>
struct RegisterBlock {
  using Vector = typename Lanes<OnHost>::Float;

  static constexpr int  width   = Lanes<OnHost>::width;
  static constexpr bool avx     = OnHost && Lanes<OnHost>::registers == 16 && width == 8;
  static constexpr int  rows    = avx ? avx_rows : (Lanes<OnHost>::registers == 16 ? 4 : 8);
  static constexpr int  vectors = avx ? 12 / avx_rows : (OnHost ? 2 : 4);
  static constexpr int  columns = width * vectors;

  /// One row of B.
  struct alignas(OnHost ? width * sizeof(float) : columns * sizeof(float)) Columns {
    Vector vector[vectors];
  };
  struct Block {
    union {
      Vector vector[rows][vectors];
      float  value[rows][columns];
    };
  };

  KOKKOS_INLINE_FUNCTION static void clear(Block& block) {
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) block.vector[r][v] = Vector{};
  }

  /// block += A B, A(r,k) = a[r * row_stride + k * depth_stride], B's row k = b[k], in ascending k.
  KOKKOS_FORCEINLINE_FUNCTION static void multiply_add(const float* a, std::int64_t row_stride, std::int64_t depth_stride, const Columns* b,
                                                       std::int64_t depth, Block& block) {
    Vector sum[rows][vectors];
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sum[r][v] = block.vector[r][v];
    for (std::int64_t k = 0; k < depth; ++k) add_step([=](int r) { return a[r * row_stride + k * depth_stride]; }, b[k], sum);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) block.vector[r][v] = sum[r][v];
  }

  /// block = A B, where A is cut into panels of as many columns as a row of B: A(r,k) is component k % columns of
  /// a[k / columns * panel + r].
  KOKKOS_FORCEINLINE_FUNCTION static void multiply_panels(const Columns* a, std::int64_t panel, const Columns* b, std::int64_t depth,
                                                          Block& block) {
    Vector sum[rows][vectors];
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sum[r][v] = Vector{};
    for (std::int64_t first = 0; first < depth; first += columns, a += panel) {
      const float* const from = reinterpret_cast<const float*>(a);
      const std::int64_t end  = depth - first < columns ? depth - first : columns;
      for (std::int64_t k = 0; k < end; ++k) add_step([=](int r) { return from[r * columns + k]; }, b[first + k], sum);
    }
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) block.vector[r][v] = sum[r][v];
  }

  /// sum += a column of A times a row of B
  template <class Column>
  KOKKOS_FORCEINLINE_FUNCTION static void add_step(const Column& a, const Columns& b, Vector (&sum)[rows][vectors]) {
    Vector row[vectors];
    for (int v = 0; v < vectors; ++v) row[v] = Lanes<OnHost>::kept(b.vector[v]);
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vectors; ++v) sum[r][v] += a(r) * row[v];
  }

  KOKKOS_INLINE_FUNCTION static constexpr std::int64_t row_blocks(std::int64_t count) { return (count + rows - 1) / rows; }
  KOKKOS_INLINE_FUNCTION static constexpr std::int64_t column_blocks(std::int64_t count) { return (count + columns - 1) / columns; }
};

}  // namespace Tributary::Impl
