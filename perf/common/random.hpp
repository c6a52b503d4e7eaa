#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <string>

// Inputs of benchmarks: the same numbers on every machine, and in perf/peers/inputs.py, so that peers compute on the same data.

namespace Tributary::Benchmark {

/// Number i of a stream: uniform in [-1, 1), 24 bits of SplitMix64.
KOKKOS_INLINE_FUNCTION float random_value(std::uint64_t stream, std::uint64_t i) {
  std::uint64_t z = stream + (i + 1) * 0x9e3779b97f4a7c15u;
  z               = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z               = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<float>(z >> 40) * 0x1p-23f - 1.0f;
}

/// A contiguous host View, element i of it value(i).
template <class Data, class Value, class... Extents>
auto filled(const std::string& label, const Value& value, Extents... extents) {
  Kokkos::View<Data, Kokkos::LayoutRight, Kokkos::HostSpace> view(Kokkos::view_alloc(label, Kokkos::WithoutInitializing), extents...);
  using Element     = typename decltype(view)::value_type;
  Element* const to = view.data();
  Kokkos::parallel_for("fill", Kokkos::RangePolicy<Kokkos::DefaultHostExecutionSpace>(0, static_cast<std::int64_t>(view.size())),
                       [=](const std::int64_t i) { to[i] = static_cast<Element>(value(static_cast<std::uint64_t>(i))); });
  Kokkos::fence("Tributary benchmark: inputs");
  return view;
}

template <class Data, class... Extents>
auto random(const std::string& label, std::uint64_t stream, Extents... extents) {
  return filled<Data>(
      label, [=](std::uint64_t i) { return random_value(stream, i); }, extents...);
}

/// A host View for results; touched, so that its pages are there.
template <class Data, class... Extents>
auto output(const std::string& label, Extents... extents) {
  return Kokkos::View<Data, Kokkos::LayoutRight, Kokkos::HostSpace>(label, extents...);
}

}  // namespace Tributary::Benchmark
