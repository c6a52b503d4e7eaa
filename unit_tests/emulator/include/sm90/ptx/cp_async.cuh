#pragma once
#include <cstdint>

#include "instructions.hpp"

namespace Tributary::Impl::SM90::ptx {

using TributaryTest::Emulator::cp_async_mbarrier_arrive;
using TributaryTest::Emulator::cp_async_wait_all;

inline void cp_async(std::uint32_t to, const void* from, bool real) { TributaryTest::Emulator::cp_async(to, from, 16, real); }
inline void cp_async_4(void* to, const void* from, bool real) {
  TributaryTest::Emulator::cp_async(TributaryTest::Emulator::shared_address(to), from, 4, real);
}

}  // namespace Tributary::Impl::SM90::ptx
