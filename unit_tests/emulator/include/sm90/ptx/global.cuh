#pragma once
#include "instructions.hpp"

namespace Tributary::Impl::SM90::ptx {

using TributaryTest::Emulator::ld_acquire;
using TributaryTest::Emulator::st_release;

inline void prefetch_l2(const void*) {}

}  // namespace Tributary::Impl::SM90::ptx
