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

}  // namespace Tributary::Impl::SM90
