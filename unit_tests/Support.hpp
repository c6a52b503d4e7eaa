#pragma once
#include <gtest/gtest.h>

#include <Kokkos_Core.hpp>
#include <Tributary.hpp>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <ostream>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

// What all tests share: the execution space and levels they run on, dense host arrays and their way to the space and back, equality
// of bits, seeds, and the check of an error's message.

namespace Tributary {

/// GoogleTest's printer.
inline void PrintTo(Level level, std::ostream* out) { *out << name_of(level); }

}  // namespace Tributary

namespace TributaryTest {

using Tributary::bfloat16_t;
using Tributary::float8_e4m3_t;
using Tributary::half_t;
using Tributary::Level;

using Space  = TRIBUTARY_EXECUTION_SPACE;
using Memory = Space::memory_space;

/// The reference level needs memory that the host can reach.
inline constexpr bool on_host = Kokkos::SpaceAccessibility<Kokkos::DefaultHostExecutionSpace, Memory>::accessible;

/// Levels whose work is cut by chunk sizes and splits.
inline std::vector<Level> cutting_levels() { return {Level::portable}; }

inline std::vector<Level> all_levels() {
  std::vector<Level> levels = cutting_levels();
  if (on_host) levels.push_back(Level::reference);
  return levels;
}

/// The Hopper level, for the space and in the builds that have it.  No device is asked: tests are listed where there is none, see
/// needs_another_device.
inline std::vector<Level> hopper_levels() {
#if defined(TRIBUTARY_ENABLE_SM90)
  if (std::is_same_v<Space, Kokkos::Cuda>) return {Level::hopper};
#endif
  return {};
}

inline std::vector<Level> with_hopper(std::vector<Level> levels) {
  for (const Level level : hopper_levels()) levels.push_back(level);
  return levels;
}

inline bool needs_another_device([[maybe_unused]] Level level) {
#if defined(TRIBUTARY_ENABLE_SM90)
  cudaDeviceProp device;
  if (level == Level::hopper) return cudaGetDeviceProperties(&device, Kokkos::device_id()) != cudaSuccess || device.major != 9;
#endif
  return false;
}

/// A test of the Hopper level alone.
class HopperTest : public testing::Test {
 protected:
  void SetUp() override {
    if (hopper_levels().empty()) GTEST_SKIP() << "not a space of this level";
    if (needs_another_device(Level::hopper)) GTEST_SKIP() << "needs compute capability 9.0";
  }
};

/// A test whose cases run on every level.
class LevelTest : public testing::TestWithParam<Level> {
 public:
  static Level level() { return GetParam(); }
};

inline std::string level_name(const testing::TestParamInfo<Level>& info) { return std::string(Tributary::name_of(info.param)); }

template <class T, int Rank>
struct Pointers {
  using type = typename Pointers<T*, Rank - 1>::type;
};
template <class T>
struct Pointers<T, 0> {
  using type = T;
};

/// In the tested space's memory, and with the tested space as its own, also where several spaces share the memory.
template <class T, int Rank>
using View = Kokkos::View<typename Pointers<T, Rank>::type, Kokkos::LayoutRight, Kokkos::Device<Space, Memory>>;

/// A dense array on the host, last dimension fastest.
template <class T, int Rank>
struct Array {
  std::array<std::int64_t, Rank> extents{};
  std::vector<T>                 values;

  Array() = default;
  explicit Array(const std::array<std::int64_t, Rank>& shape, T fill = T{}) : extents(shape) {
    std::size_t size = 1;
    for (auto extent : shape) size *= static_cast<std::size_t>(extent);
    values.assign(size, fill);
  }

  template <class... At>
  T& operator()(At... at) {
    return values[place({static_cast<std::int64_t>(at)...})];
  }
  template <class... At>
  const T& operator()(At... at) const {
    return values[place({static_cast<std::int64_t>(at)...})];
  }
  Kokkos::LayoutRight layout() const {
    Kokkos::LayoutRight layout;
    for (std::size_t d = 0; d < extents.size(); ++d) layout.dimension[d] = static_cast<std::size_t>(extents[d]);
    return layout;
  }

 private:
  std::size_t place(std::initializer_list<std::int64_t> at) const {
    static_cast<void>(at);
    std::int64_t place = 0;
    std::size_t  d     = 0;
    for (auto i : at) place = place * extents[d++] + i;
    return static_cast<std::size_t>(place);
  }
};

template <class T>
Array<T, 1> row(std::vector<T> values) {
  Array<T, 1> result({static_cast<std::int64_t>(values.size())});
  result.values = std::move(values);
  return result;
}

/// A copy in the tested space's memory.
template <class T, int Rank>
View<T, Rank> in_space(const Array<T, Rank>& array) {
  View<T, Rank> view(Kokkos::view_alloc("in_space", Kokkos::WithoutInitializing), array.layout());
  const Kokkos::View<typename Pointers<const T, Rank>::type, Kokkos::LayoutRight, Kokkos::HostSpace, Kokkos::MemoryUnmanaged> from(
      array.values.data(), array.layout());
  Kokkos::deep_copy(view, from);
  return view;
}

/// A copy of what a View holds, once all work is done.
template <int Rank, class V>
Array<typename V::non_const_value_type, Rank> from_space(const V& view) {
  using T = typename V::non_const_value_type;
  static_assert(V::rank() == Rank);
  Kokkos::fence();
  Array<T, Rank> array;
  std::size_t    size = 1;
  for (std::size_t d = 0; d < Rank; ++d) size *= view.extent(d), array.extents[d] = static_cast<std::int64_t>(view.extent(d));
  array.values.resize(size);
  const Kokkos::View<typename Pointers<T, Rank>::type, Kokkos::LayoutRight, Kokkos::HostSpace, Kokkos::MemoryUnmanaged> to(
      array.values.data(), array.layout());
  Kokkos::deep_copy(to, view);
  return array;
}

inline std::uint32_t bits_of(float value) { return Kokkos::bit_cast<std::uint32_t>(value); }
inline std::uint32_t bits_of(std::int32_t value) { return static_cast<std::uint32_t>(value); }
inline std::uint32_t bits_of(float8_e4m3_t value) { return value.bits; }

/// Equality of bits: -0 differs from +0, a NaN equals itself.
template <class T, int Rank>
testing::AssertionResult same_bits(const Array<T, Rank>& given, const Array<T, Rank>& expected) {
  if (given.extents != expected.extents) return testing::AssertionFailure() << "extents differ";
  for (std::size_t i = 0; i < given.values.size(); ++i) {
    if (bits_of(given.values[i]) == bits_of(expected.values[i])) continue;
    auto        failure = testing::AssertionFailure() << "at [";
    std::size_t rest    = i;
    std::string at;
    for (std::size_t d = Rank; d-- > 0;) {
      const auto extent = static_cast<std::size_t>(given.extents[d]);
      at.insert(0, std::to_string(rest % extent).append(at.empty() ? "" : ", "));
      rest /= extent;
    }
    return failure << at << "]: " << static_cast<float>(given.values[i]) << " (bits " << std::hex << bits_of(given.values[i])
                   << "), expected " << static_cast<float>(expected.values[i]) << " (bits " << bits_of(expected.values[i]) << ")";
  }
  return testing::AssertionSuccess();
}

/// The seed of random shapes and data: TRIBUTARY_TEST_SEED, or always the same one.
inline std::uint32_t test_seed() {
  const char* const text = std::getenv("TRIBUTARY_TEST_SEED");
  return text == nullptr ? 20240607u : static_cast<std::uint32_t>(std::strtoul(text, nullptr, 10));
}

inline std::string seed_text() { return "TRIBUTARY_TEST_SEED=" + std::to_string(test_seed()); }

class Random {
 public:
  explicit Random(std::uint32_t stream = 0) : engine_(test_seed() + 7919u * stream) {}

  /// Uniform over [least, most].
  template <class T = std::int64_t>
  T integer(std::int64_t least, std::int64_t most) {
    return static_cast<T>(least + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(most - least + 1)));
  }
  template <class T>
  const T& any_of(const std::vector<T>& choices) {
    return choices[integer<std::size_t>(0, static_cast<std::int64_t>(choices.size()) - 1)];
  }
  float normal() { return normal_(engine_); }
  bool  coin() { return integer(0, 1) == 1; }

  template <class T, int Rank>
  void fill_with_integers(Array<T, Rank>& array, std::int64_t least, std::int64_t most) {
    for (auto& value : array.values) value = static_cast<T>(integer<float>(least, most));
  }
  template <class T, int Rank>
  void fill_with_normals(Array<T, Rank>& array) {
    for (auto& value : array.values) value = static_cast<T>(normal());
  }

 private:
  std::mt19937                    engine_;
  std::normal_distribution<float> normal_;
};

/// Expects std::invalid_argument whose message has all the parts: function, argument, expected, given.
template <class Call>
void expect_refusal(const Call& call, std::initializer_list<std::string_view> parts) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    for (const auto part : parts) EXPECT_NE(message.find(part), std::string::npos) << "no \"" << part << "\" in \"" << message << '"';
    return;
  }
  ADD_FAILURE() << "not refused; expected a message with \"" << *(parts.end() - 1) << '"';
}

}  // namespace TributaryTest
