#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "Tributary_Level.hpp"
#include "Tributary_Types.hpp"
#include "impl/Tributary_Tensor.hpp"

// Checks that several operators share.

namespace Tributary::Impl {

inline std::int64_t element_size(ElementType type) {
  return visit_element_type(type, []<class T>(std::type_identity<T>) -> std::int64_t { return sizeof(T); });
}

/// "[2, 3, 4]"
std::string extents_text(const std::int64_t* extents, int rank);

template <class T, int Rank>
std::string extents_text(const Tensor<T, Rank>& tensor) {
  return extents_text(tensor.extents, Rank);
}

inline std::string extents_text(std::initializer_list<std::int64_t> extents) {
  return extents_text(extents.begin(), static_cast<int>(extents.size()));
}

/// Texts are made only where the extents differ.
template <class T, int Rank>
void require_extents(std::string_view function, std::string_view name, const Tensor<T, Rank>& given, const std::int64_t (&expected)[Rank]) {
  if (std::equal(given.extents, given.extents + Rank, expected)) return;
  require(false, "{}: {} is {}, expected {}", function, name, extents_text(given), extents_text(expected, Rank));
}

/// An output element must have a place of its own: the strides, from the smallest up, must step over what the smaller ones span.
void require_distinct_elements(std::string_view function, std::string_view name, const std::int64_t* extents, const std::int64_t* strides,
                               int rank);

template <class T, int Rank>
void require_distinct_elements(std::string_view function, std::string_view name, const Tensor<T, Rank>& output) {
  if (!output.empty()) require_distinct_elements(function, name, output.extents, output.strides, Rank);
}

/// Whether an element of one shares bytes with an element of the other; tensors may lie between each other's rows.  Where strides are so
/// odd that the search would be long, the answer is yes.
bool overlap(const Footprint&, const Footprint&);

inline void require_disjoint(std::string_view function, std::string_view output_name, const Footprint& output, std::string_view other_name,
                             const Footprint& other) {
  require(!overlap(output, other), "{}: {} overlaps {} in memory", function, output_name, other_name);
}

/// The level a call takes.  Where the host cannot reach the operator's memory there is no reference level.
///
/// \param no_hopper  why the Hopper level cannot take this call; empty if it can
Level choose_level(std::string_view function, Level wanted, bool host_memory, std::string_view no_hopper = "the operator has none");

/// Says in the log why a call of Level::automatic goes without the Hopper level; nothing where it does not.
void log_no_hopper(std::string_view function, Level wanted, std::string_view no_hopper);

}  // namespace Tributary::Impl
