#pragma once
#include <Kokkos_Core.hpp>

namespace Tributary::Impl::SM90 {

using Member = TributaryTest::Emulator::Member;

constexpr int            largest_scratch(int warps) { return 232448 - 16 - 8 * (warps + 2); }
constexpr int            scratch_alignment = 1024;
inline int               thread_of_team() { return TributaryTest::Emulator::thread_of_team(); }
inline unsigned char*    aligned_scratch(const Member&, int bytes) { return TributaryTest::Emulator::scratch(bytes); }
[[noreturn]] inline void exit_thread() { TributaryTest::Emulator::exit_thread(); }

template <int Threads, int, int = 0, class Functor>
void launch_teams(const char*, const Kokkos::Cuda&, int teams, int scratch_bytes, const Functor& functor) {
  TributaryTest::Emulator::launch(Threads, teams, scratch_bytes, [&](const Member& team) { functor(team); });
}

}  // namespace Tributary::Impl::SM90
