#pragma once
#include "instructions.hpp"

namespace Tributary::Impl::SM90::ptx {

using TributaryTest::Emulator::ld_acquire;
using TributaryTest::Emulator::st_release;

inline void ld_once(unsigned (&words)[4], const void* from) {
  for (int i = 0; i < 4; ++i) words[i] = static_cast<const unsigned*>(from)[i];
}

inline void prefetch_l2(const void*) {}

}  // namespace Tributary::Impl::SM90::ptx
