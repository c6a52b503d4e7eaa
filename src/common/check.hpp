#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "Tributary_Level.hpp"
#include "Tributary_Types.hpp"
#include "impl/Tributary_Tensor.hpp"

// Checks that several operators share.

namespace Tributary::Impl {

std::int64_t element_size(ElementType type);

/// "[2, 3, 4]"
std::string extents_text(const std::int64_t* extents, int rank);

template <class T, int Rank>
std::string extents_text(const Tensor<T, Rank>& tensor) {
  return extents_text(tensor.extents, Rank);
}

/// An output element must have one place: a stride of 0 along an extent above 1 is refused.
template <class T, int Rank>
void require_distinct_elements(std::string_view function, std::string_view name, const Tensor<T, Rank>& output) {
  for (int d = 0; d < Rank; ++d)
    require(output.empty() || output.extents[d] <= 1 || output.strides[d] > 0,
            "{}: {} has stride 0 in dimension {}; an output's elements must be distinct", function, name, d);
}

inline void require_disjoint(std::string_view function, std::string_view output_name, const ByteSpan& output, std::string_view other_name,
                             const ByteSpan& other) {
  require(!overlap(output, other), "{}: {} overlaps {} in memory", function, output_name, other_name);
}

/// The level a call takes.  Where the host cannot reach the operator's memory there is no reference level.
Level choose_level(std::string_view function, Level wanted, bool host_memory);

}  // namespace Tributary::Impl
