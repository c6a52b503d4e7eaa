#pragma once
#include <Kokkos_Core.hpp>
#include <Tributary_Types.hpp>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "npy.hpp"

// Between .npy files and Views.

namespace Tributary::Program {

/// Element i of a file, whose elements are `Stored`.
template <class Stored>
Stored stored_at(const std::byte* bytes, std::int64_t i) {
  Stored value;  // copied out because a header of odd length leaves the data unaligned
  std::memcpy(&value, bytes + i * static_cast<std::int64_t>(sizeof(Stored)), sizeof(Stored));
  return value;
}

/// float32 or float16 as any float; int32 or int64 clamped to int32; bytes as they are.
template <class T, class Stored>
T converted(Stored stored) {
  if constexpr (std::is_same_v<T, Stored>)
    return stored;
  else if constexpr (std::is_same_v<T, std::int32_t>)
    return static_cast<T>(std::clamp<std::int64_t>(stored, std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
  else
    return static_cast<T>(static_cast<float>(stored));
}

template <class Stored, class T>
void convert_elements(const NpyFile& file, T* out) {
  const std::byte* bytes = file.data();
  using Range            = Kokkos::RangePolicy<Kokkos::DefaultHostExecutionSpace, Kokkos::IndexType<std::int64_t>>;
  Kokkos::parallel_for("Tributary::read", Range(0, elements(file.shape())),
                       [=](const std::int64_t i) { out[i] = converted<T>(stored_at<Stored>(bytes, i)); });
  Kokkos::fence("Tributary::read");
}

template <class View, std::size_t... D>
View view_of_extents(const std::string& label, const Shape& extents, std::index_sequence<D...>) {
  return View(Kokkos::view_alloc(Kokkos::WithoutInitializing, label), static_cast<std::size_t>(extents[D])...);
}

/// A View of these extents, uninitialised.
template <class View>
View make_view(const std::string& label, const Shape& extents) {
  return view_of_extents<View>(label, extents, std::make_index_sequence<View::rank()>{});
}

/// A file's elements as a View of these extents (the file's shape, but for dimensions of one) in any memory space, rounded to the
/// View's element type.
template <class View>
View read_view(const NpyFile& file, const Shape& extents) {
  using T           = typename View::non_const_value_type;
  auto       device = make_view<View>(file.path().filename().string(), extents);
  const auto host   = Kokkos::create_mirror_view(Kokkos::WithoutInitializing, device);
  if constexpr (std::is_same_v<T, std::int32_t>) {
    if (file.type() == NpyType::int64)
      convert_elements<std::int64_t>(file, host.data());
    else
      convert_elements<std::int32_t>(file, host.data());
  } else if constexpr (std::is_same_v<T, std::uint8_t>) {
    convert_elements<std::uint8_t>(file, host.data());  // bool is a byte, too
  } else {
    if (file.type() == NpyType::float16)
      convert_elements<half_t>(file, host.data());
    else
      convert_elements<float>(file, host.data());
  }
  Kokkos::deep_copy(device, host);
  return device;
}

/// The elements of a contiguous View as floats in host memory.
template <class View>
auto host_floats(const View& view) {
  auto host = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, view);
  if constexpr (std::is_same_v<typename View::non_const_value_type, float>) {
    return host;
  } else {
    Kokkos::View<float*, Kokkos::HostSpace> floats(Kokkos::view_alloc(Kokkos::WithoutInitializing, view.label()), view.size());
    using Range      = Kokkos::RangePolicy<Kokkos::DefaultHostExecutionSpace, Kokkos::IndexType<std::int64_t>>;
    const auto* from = host.data();
    Kokkos::parallel_for("Tributary::host_floats", Range(0, static_cast<std::int64_t>(view.size())),
                         [=](const std::int64_t i) { floats(i) = static_cast<float>(from[i]); });
    Kokkos::fence("Tributary::host_floats");
    return floats;
  }
}

/// The bytes of a View in host memory, to be written to a file.
template <class View>
std::string_view bytes_of(const View& view) {
  return {reinterpret_cast<const char*>(view.data()), view.size() * sizeof(typename View::value_type)};
}

}  // namespace Tributary::Program
