#pragma once
#include <cuda.h>

#include <array>
#include <cstdint>

#include "Tributary_Types.hpp"

namespace Tributary::Impl::SM90 {

/// A tensor in device memory as the copy engine sees it, fastest dimension first.
template <int Rank>
struct TensorShape {
  std::array<std::int64_t, Rank>     extents;  ///< elements, the fastest not 0; with a 0 all others count as 1 (nothing may be read)
  std::array<std::int64_t, Rank - 1> strides;  ///< elements, of all but the fastest dimension; bytes must be multiples of 16
  std::array<int, Rank>              box;      ///< elements that one instruction copies; what lies outside the tensor comes as zero
};

/// The map for boxes whose rows (box[0] elements) are 128 or 64 bytes, swizzled over that length.
///
/// \throws std::runtime_error if the driver has no tensor maps or refuses this one
template <int Rank>
CUtensorMap tensor_map(ElementType type, const void* base, const TensorShape<Rank>& shape);

/// Whether the copy engine, and stores of whole vectors, can take a tensor of these extents and strides, all but the fastest dimension's.
template <int Count>
bool multiple_of_16_bytes(const void*  base, const std::int64_t (&extents)[Count], const std::int64_t (&strides)[Count],
                          std::int64_t element_size) {
  // A View without elements may have strides of 0; nothing of it is touched.
  for (const std::int64_t extent : extents)
    if (extent == 0) return true;
  if (reinterpret_cast<std::uintptr_t>(base) % 16 != 0) return false;
  for (int d = 0; d < Count; ++d) {
    const std::int64_t bytes = strides[d] * element_size;
    if (extents[d] > 1 && (bytes <= 0 || bytes % 16 != 0 || bytes >= std::int64_t{1} << 40)) return false;
  }
  return true;
}

}  // namespace Tributary::Impl::SM90
