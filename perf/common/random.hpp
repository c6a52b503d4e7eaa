#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <string>

// Inputs of benchmarks: the same numbers on every machine, and in perf/peers/inputs.py, so that peers compute on the same data.  Views lie
// in the memory of Exec, the host's unless another is named.

namespace Tributary::Benchmark {

/// Number i of a stream: uniform in [-1, 1), 24 bits of SplitMix64.
KOKKOS_INLINE_FUNCTION float random_value(std::uint64_t stream, std::uint64_t i) {
  std::uint64_t z = stream + (i + 1) * 0x9e3779b97f4a7c15u;
  z               = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z               = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  z ^= z >> 31;
  return static_cast<float>(z >> 40) * 0x1p-23f - 1.0f;
}

struct RandomValue {
  std::uint64_t                stream;
  KOKKOS_INLINE_FUNCTION float operator()(std::uint64_t i) const { return random_value(stream, i); }
};

template <class Element, class Value>
struct Fill {
  Element*             to;
  Value                value;
  KOKKOS_FUNCTION void operator()(std::int64_t i) const { to[i] = static_cast<Element>(value(static_cast<std::uint64_t>(i))); }
};

template <class Data, class Exec>
using Array = Kokkos::View<Data, Kokkos::LayoutRight, typename Exec::memory_space>;

/// A contiguous View, element i of it value(i).
template <class Data, class Exec = Kokkos::DefaultHostExecutionSpace, class Value, class... Extents>
auto filled(const std::string& label, const Value& value, Extents... extents) {
  Array<Data, Exec> view(Kokkos::view_alloc(label, Kokkos::WithoutInitializing), extents...);
  using Element = typename Array<Data, Exec>::value_type;
  Kokkos::parallel_for("fill", Kokkos::RangePolicy<Exec, Kokkos::IndexType<std::int64_t>>(0, static_cast<std::int64_t>(view.size())),
                       Fill<Element, Value>{view.data(), value});
  Kokkos::fence("Tributary benchmark: inputs");
  return view;
}

template <class Data, class Exec = Kokkos::DefaultHostExecutionSpace, class... Extents>
auto random(const std::string& label, std::uint64_t stream, Extents... extents) {
  return filled<Data, Exec>(label, RandomValue{stream}, extents...);
}

/// A View for results; touched, so that its pages are there.
template <class Data, class Exec = Kokkos::DefaultHostExecutionSpace, class... Extents>
auto output(const std::string& label, Extents... extents) {
  return Array<Data, Exec>(label, extents...);
}

}  // namespace Tributary::Benchmark
