#pragma once
#include "instructions.hpp"

namespace Tributary::Impl::SM90::ptx {

using TributaryTest::Emulator::bar_arrive;
using TributaryTest::Emulator::bar_red_or;
using TributaryTest::Emulator::bar_sync;
using TributaryTest::Emulator::fence_proxy_async;
using TributaryTest::Emulator::fence_proxy_async_global;

template <int Registers>
void setmaxnreg_inc() {
  static_assert(Registers % 8 == 0 && Registers >= 24 && Registers <= 256);
  TributaryTest::Emulator::setmaxnreg(Registers);
}
template <int Registers>
void setmaxnreg_dec() {
  setmaxnreg_inc<Registers>();
}

}  // namespace Tributary::Impl::SM90::ptx
