#pragma once
#include <cstdint>

// stmatrix: a warp stores what lies in its registers as products leave it there.

namespace Tributary::Impl::SM90::ptx {

/// Four matrices of 8 x 8 elements of 2 bytes.  Of lane l: words a to d, two neighbours of row l / 4 of a matrix each; `row`, the shared
/// address of row l % 8 of matrix l / 8, whose 16 bytes are aligned.
__device__ inline void stmatrix(std::uint32_t row, std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

}  // namespace Tributary::Impl::SM90::ptx
