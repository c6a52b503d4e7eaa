#include <cstdio>
#include <cstdlib>

#include "Support.hpp"
#include "common/check.hpp"

// Which level a call takes, and what the log says of it.

namespace TributaryTest {
namespace {

using Tributary::Impl::choose_level;
using Tributary::Impl::log_no_hopper;

TEST(Levels, AutomaticTakesTheHopperLevelWhereThereIsNoReasonAgainstIt) {
  EXPECT_EQ(choose_level("topk", Level::automatic, true, ""), Level::hopper);
  EXPECT_EQ(choose_level("topk", Level::automatic, true, "k is 4096"), Level::portable);
  EXPECT_EQ(choose_level("topk", Level::automatic, false, "k is 4096"), Level::portable);
}

TEST(Levels, ANamedLevelIsTakenOrRefused) {
  EXPECT_EQ(choose_level("topk", Level::portable, true, ""), Level::portable);
  EXPECT_EQ(choose_level("topk", Level::reference, true, ""), Level::reference);
  EXPECT_EQ(choose_level("topk", Level::hopper, true, ""), Level::hopper);
  expect_refusal([] { choose_level("topk", Level::hopper, true, "k is 4096"); }, {"topk: ", "no Hopper level", "k is 4096"});
  expect_refusal([] { choose_level("topk", Level::reference, false, ""); }, {"topk: ", "reference level", "host"});
}

// The log asks the environment once in a process, hence processes of their own.  What it says stands between brackets.
[[noreturn]] void log_and_exit(const char* variable, Level wanted, const char* no_hopper) {
  setenv("TRIBUTARY_LOG", variable, 1);
  std::fputs("[", stderr);
  log_no_hopper("topk", wanted, no_hopper);
  std::fputs("]", stderr);
  std::_Exit(0);
}

TEST(LevelsDeathTest, TheLogSaysWhyNotTheHopperLevel) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto  ended                     = testing::ExitedWithCode(0);
  const char* nothing                   = "\\[\\]";
  EXPECT_EXIT(log_and_exit("1", Level::automatic, "k is 4096"), ended, "\\[Tributary: topk: no Hopper level for this call: k is 4096");
  EXPECT_EXIT(log_and_exit("1", Level::automatic, ""), ended, nothing);
  EXPECT_EXIT(log_and_exit("1", Level::portable, "k is 4096"), ended, nothing);
  EXPECT_EXIT(log_and_exit("0", Level::automatic, "k is 4096"), ended, nothing);
}

}  // namespace
}  // namespace TributaryTest
