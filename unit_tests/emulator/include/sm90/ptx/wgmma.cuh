#pragma once
#include <cstdint>
#include <type_traits>

#include "Tributary_Types.hpp"
#include "instructions.hpp"
#include "sm90/ptx/descriptor.cuh"

namespace Tributary::Impl::SM90::ptx {

using TributaryTest::Emulator::wgmma_commit_group;
using TributaryTest::Emulator::wgmma_fence;

template <int Pending>
void wgmma_wait_group() {
  TributaryTest::Emulator::wgmma_wait_group(Pending);
}
template <int Count>
void pin(float (&d)[Count]) {
  TributaryTest::Emulator::pin(d);
}

template <class Value>
void forget(Value&) {}

template <int Count>
void move(std::uint32_t (&to)[Count], const std::uint32_t (&from)[Count]) {
  for (int i = 0; i < Count; ++i) to[i] = from[i];
}

inline std::uint32_t uniform_low(std::uint64_t descriptor) { return static_cast<std::uint32_t>(descriptor); }

template <class Element, int N, TributaryTest::Emulator::Operands TheOperands>
struct EmulatedWgmma {
  using Format                   = TributaryTest::Emulator::Format;
  static constexpr Format format = std::is_same_v<Element, half_t>       ? Format::half
                                   : std::is_same_v<Element, bfloat16_t> ? Format::bfloat16
                                                                         : Format::e4m3;

  static void issue(float (&d)[N / 2], std::uint64_t a, std::uint64_t b, bool accumulate) {
    TributaryTest::Emulator::wgmma_issue({N, TheOperands, format, accumulate, a, b}, d, nullptr);
  }
  static void issue(float (&d)[N / 2], const std::uint32_t* a, std::uint64_t b, bool accumulate = true) {
    TributaryTest::Emulator::wgmma_issue({N, TheOperands, format, accumulate, 0, b}, d, a);
  }
};
template <class Element, int N>
using Wgmma = EmulatedWgmma<Element, N, TributaryTest::Emulator::Operands::rows>;
template <class Element, int N>
using WgmmaAcross = EmulatedWgmma<Element, N, TributaryTest::Emulator::Operands::across>;
template <class Element, int N>
using WgmmaAcrossB = EmulatedWgmma<Element, N, TributaryTest::Emulator::Operands::across_b>;
template <class Element, int N>
using WgmmaRegisterA = EmulatedWgmma<Element, N, TributaryTest::Emulator::Operands::register_a>;
template <class Element, int N>
using WgmmaRegisterARows = EmulatedWgmma<Element, N, TributaryTest::Emulator::Operands::register_a_rows>;

}  // namespace Tributary::Impl::SM90::ptx
