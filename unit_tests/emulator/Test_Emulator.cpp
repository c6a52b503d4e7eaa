#include <gtest/gtest.h>

#include <string>

#include "planted_bugs.hpp"

// The emulator itself: it passes what is right, and says what is wrong with a bug.

namespace TributaryTest::Emulator {
namespace {

Settings settings_of(std::uint64_t seed) {
  Settings settings          = Settings::of(seed, 1);
  settings.loads_need_fences = true;
  return settings;
}

std::string failure_of(Bug bug, std::uint64_t seed) {
  float result = 0;
  set(settings_of(seed));
  try {
    run_with(bug, result);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return "";
}

TEST(Emulator, PassesWhatIsRight) {
  for (std::uint64_t seed = 0; seed < 90; ++seed) {
    float result = 0;
    set(settings_of(seed));
    run_with(Bug::none, result);
    ASSERT_EQ(result, 8.0f) << "seed " << seed;  // 16 x 0.5 x 1
  }
}

TEST(Emulator, CatchesPlantedBugsOnEverySchedule) {
  struct Case {
    Bug         bug;
    const char* part;  // of the message
  };
  for (const Case& planted :
       {Case{Bug::no_wgmma_fence, "no wgmma.fence"}, Case{Bug::no_proxy_fence, "without a proxy fence"},
        Case{Bug::no_proxy_fence_after_load, "read without a proxy fence"}, Case{Bug::no_wait_for_product, "before the wait"},
        Case{Bug::accumulator_in_flight, "written in flight"}, Case{Bug::over_arrival, ""}, Case{Bug::too_few_bytes, ""},
        Case{Bug::missing_arrival, ""}, Case{Bug::wrong_parity, "mbarrier"}, Case{Bug::divergent_collective, "different collectives"},
        Case{Bug::beyond_scratch, "beyond the scratch"}})
    for (std::uint64_t seed = 0; seed < 45; ++seed) {
      const std::string failure = failure_of(planted.bug, seed);
      ASSERT_FALSE(failure.empty()) << "bug " << static_cast<int>(planted.bug) << " seed " << seed;
      ASSERT_NE(failure.find(planted.part), std::string::npos) << "bug " << static_cast<int>(planted.bug) << ": " << failure;
    }
}

TEST(Emulator, CatchesARaceOnSomeSchedule) {
  int caught = 0;
  for (std::uint64_t seed = 0; seed < 45; ++seed)
    if (failure_of(Bug::early_load, seed).find("a copy is writing") != std::string::npos) ++caught;
  EXPECT_GT(caught, 10);
}

}  // namespace
}  // namespace TributaryTest::Emulator
