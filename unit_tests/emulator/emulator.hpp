#pragma once
#include <cstdint>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// A host's emulator of Hopper thread blocks, for tests without a GPU.  It runs the kernels' own source: every thread of a block is a fiber,
// every function of sm90/ptx calls the emulator (instructions.hpp), and whatever the hardware leaves open (which warp runs next, when a
// copy arrives, when a product is done) is drawn from a seed.  What a program may not rely on is made visible or refused: see the checks
// of each file.
//
//   fibers.cpp    threads and schedules        wgmma.cpp     the tensor cores
//   barriers.cpp  how threads meet             accesses.cpp  ordinary loads and stores of shared memory
//   copies.cpp    the copy engine              races.cpp     which accesses nothing orders
//   include/      what replaces CUDA's, Kokkos' and sm90/ptx's headers

namespace TributaryTest::Emulator {

/// When what goes on beside the threads is done: at any time, at once, or not before something waits for it.
enum class Timing { random, early, late };

/// Which of the warps that can run does.
enum class Schedule { random, slow_warps, first, last, longest };

/// An instruction that the emulator leaves out, to see that tests notice.
struct Omission {
  enum class Of { nothing, mbarrier_wait, named_barrier, atomic_or, atomic_exchange, comparison, syncwarp } of = Of::nothing;
  int number   = 0;  ///< of the named barrier; of the mbarrier, in the order in which they were initialised, from the last one
  int barriers = 0;  ///< only of teams that have so many mbarriers; 0: of all
};

/// Device memory.
struct Memory {
  const void* begin;
  long        bytes;
};

/// What a launch depends on besides the kernel.
struct Settings {
  std::uint64_t seed       = 1;
  Timing        copies     = Timing::random;
  Timing        products   = Timing::random;
  Schedule      schedule   = Schedule::random;
  int           processors = 2;      ///< what the emulated device says of itself: teams that a persistent kernel launches
  bool          late_start = false;  ///< teams begin at different times
  bool          skips = false;  ///< warps may leave out phases of an mbarrier that they do not arrive at; which one is meant is not checked

  bool loads_need_fences = false;  ///< what threads have read may be copied over only behind their proxy fences

  bool                races           = false;  ///< ordinary accesses that nothing orders are refused, of shared memory and what is watched
  int                 optimistic_warp = -1;     ///< may load what others store at the same time
  std::vector<Memory> watched         = {};
  Omission            omission        = {};

  /// Every combination comes up as seeds go on.
  static Settings of(std::uint64_t seed, int processors);
};

/// For the launches to come.
void set(const Settings& settings);

/// What has happened since the program started, to see that a test does what it is for.
struct Counts {
  long launches, boxes, products, bulk_copies, proxy_fences, sleeps;
};
Counts counts();

/// A kernel did what it must not; `what()` says what, which thread, and where all warps are.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A team of a league, as kernels see it.
struct Member {
  int rank, size;

  int league_rank() const { return rank; }
  int league_size() const { return size; }
};

/// Runs `body` once for every thread of every team until all have ended.
///
/// \param threads        of a team; a multiple of 32
/// \param scratch_bytes  shared memory of a team
/// \throws Failure on what no kernel may do, a deadlock included
void launch(int threads, int teams, int scratch_bytes, const std::function<void(const Member&)>& body);

/// Ends the launch with a Failure.
[[noreturn]] void stop(const std::string& what);

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  stop(text.str());
}

}  // namespace TributaryTest::Emulator
