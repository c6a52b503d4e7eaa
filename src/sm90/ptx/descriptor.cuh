#pragma once
#include <cstdint>

// What wgmma is told of a matrix in shared memory.

namespace Tributary::Impl::SM90::ptx {

/// Descriptor of a matrix in shared memory whose rows of `RowBytes` (128 or 64) were swizzled by the copy engine; the depth runs along a
/// row, groups of 8 rows follow one another.
template <int RowBytes>
__device__ constexpr std::uint64_t matrix_descriptor(std::uint32_t address) {
  static_assert(RowBytes == 128 || RowBytes == 64);
  constexpr std::uint64_t swizzle = RowBytes == 128 ? 1 : 2, group = 8 * RowBytes / 16;
  return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) | (1ull << 16) | (group << 32) | (swizzle << 62);
}

/// The same where the depth runs across rows of 128 bytes: 8 rows follow one another, the next 64 columns lie `panel_bytes` further.
__device__ inline std::uint64_t transposed_descriptor(std::uint32_t address, int panel_bytes) {
  return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) | (static_cast<std::uint64_t>(panel_bytes / 16) << 16) | (64ull << 32) |
         (1ull << 62);
}

}  // namespace Tributary::Impl::SM90::ptx
