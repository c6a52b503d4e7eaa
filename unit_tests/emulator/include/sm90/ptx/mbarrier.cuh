#pragma once
#include "instructions.hpp"

namespace Tributary::Impl::SM90::ptx {

using TributaryTest::Emulator::mbarrier_init;
using TributaryTest::Emulator::mbarrier_wait;
using TributaryTest::Emulator::shared_address;

inline void fence_mbarrier_init() {}
inline void mbarrier_arrive(std::uint64_t* barrier) { TributaryTest::Emulator::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive(std::uint64_t* barrier, int times) {
  for (; times > 0; --times) mbarrier_arrive(barrier);
}
inline void mbarrier_arrive_expect_tx(std::uint64_t* barrier, int bytes) { TributaryTest::Emulator::mbarrier_arrive(barrier, bytes); }

}  // namespace Tributary::Impl::SM90::ptx
