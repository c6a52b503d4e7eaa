#pragma once
#include <cuda.h>

#include <array>
#include <cstdint>
#include <string>

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

/// Why the copy engine, or stores of whole vectors, cannot take a tensor of these extents and strides, all but the fastest dimension's;
/// empty if they can.
template <int Count>
std::string no_whole_vectors(const std::string& name, const void*               base, const std::int64_t (&extents)[Count],
                             const std::int64_t (&strides)[Count], std::int64_t element_size) {
  // A View without elements may have strides of 0; nothing of it is touched.
  for (const std::int64_t extent : extents)
    if (extent == 0) return "";
  bool multiples = reinterpret_cast<std::uintptr_t>(base) % 16 == 0;
  for (int d = 0; d < Count; ++d) {
    if (extents[d] == 1) continue;
    const std::int64_t bytes = strides[d] * element_size;
    if (bytes == 0) return name + " has a stride of 0 over " + std::to_string(extents[d]) + " entries";
    if (bytes < 0 || bytes >= std::int64_t{1} << 40) return name + " has a stride below 0 or of 2^40 bytes or more";
    multiples = multiples && bytes % 16 == 0;
  }
  return multiples ? "" : name + "'s base or strides are no multiples of 16 bytes";
}

}  // namespace Tributary::Impl::SM90
