#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "EmulatedIndexer.hpp"
#include "sm90/indexer/decode.hpp"

// The indexer's Hopper kernel under the emulator.

namespace TributaryTest::Emulator {
namespace {

TEST(IndexerEmulated, EveryTile) {
  std::uint64_t stream = 0;
  for (const ElementType type : {ElementType::bfloat16, ElementType::float16, ElementType::float8_e4m3})
    for (const int heads : {64, 32})
      for (const int head_dim : {64, 128})
        for (const int top_k : {30, 0}) {
          run_and_check({.type = type, .queries = 19, .keys = 200, .heads = heads, .head_dim = head_dim, .top_k = top_k}, ++stream);
          if (HasFailure()) return;
        }
}

TEST(IndexerEmulated, RandomTopk) {
  for (std::uint64_t stream = 1000; stream < 1000 + 100; ++stream) {
    Random random(stream);
    run_and_check(IndexerOptions::any(random), stream);
    if (HasFailure()) return;
  }
}

TEST(IndexerEmulated, RandomScores) {
  for (std::uint64_t stream = 2000; stream < 2000 + 30; ++stream) {
    Random         random(stream);
    IndexerOptions options = IndexerOptions::any(random);
    options.top_k          = 0;
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

/// Rows for one warpgroup only, whose key tiles both take by turns, alone and before tiles with rows for both.
TEST(IndexerEmulated, ScoresOfFewQueries) {
  for (std::uint64_t stream = 7000; stream < 7000 + 60; ++stream) {
    Random         random(stream);
    IndexerOptions options = IndexerOptions::any(random);
    options.top_k          = 0;
    options.queries        = 1 + random.below(options.heads == 64 ? 13 : 26);
    options.keys           = 1 + random.below(64 * (1 + random.below(14)));
    options.splits         = random.below(6);
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

/// The kernel for few queries: one warpgroup's queries or both's, of 64 to 256 columns, few and many parts of the keys, lists that hold all
/// candidates or do not.
TEST(IndexerEmulated, FewQueries) {
  for (std::uint64_t stream = 9000; stream < 9000 + 120; ++stream) {
    Random         random(stream);
    IndexerOptions options = IndexerOptions::any(random);
    options.few            = true;
    options.queries        = 1 + random.below(options.heads == 64 ? 10 : 20);
    options.keys           = 1 + random.below(64 * (1 + random.below(20)));
    options.room           = random.one_in(2) ? 0 : 1 + random.below(400);
    options.processors     = 1 + random.below(6);
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

/// Buffers that hold little more than k, and scores that fill them.
TEST(IndexerEmulated, ManyCuts) {
  std::uint64_t stream = 3000;
  for (const Trend trend : {Trend::rising_as_visited, Trend::ascending, Trend::descending, Trend::equal, Trend::few_values, Trend::none})
    for (const int top_k : {1, 50, 130}) {
      run_and_check({.queries = 11, .keys = 900, .top_k = top_k, .trend = trend, .room = 192, .processors = 1}, ++stream);
      if (HasFailure()) return;
    }
}

/// The plan's buffers, full once.
TEST(IndexerEmulated, LongRows) {
  std::uint64_t stream = 7000;
  for (const Trend trend : {Trend::rising_as_visited, Trend::equal}) {
    run_and_check({.queries = 2, .keys = 7700, .top_k = 300, .trend = trend, .processors = 1}, ++stream);
    if (HasFailure()) return;
  }
}

/// More entries than a warp sorts at once; of half_crowded's, the first ones alone.
TEST(IndexerEmulated, LongLists) {
  std::uint64_t stream = 8000;
  for (const Trend trend : {Trend::half_crowded, Trend::ascending, Trend::none})
    for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index}) {
      run_and_check({.queries = 5, .keys = 2600, .top_k = 2000, .trend = trend, .order = order, .processors = 1}, ++stream);
      if (HasFailure()) return;
    }
}

/// Items that have no keys, or one or two tiles of them, between others.
TEST(IndexerEmulated, FewTiles) {
  for (std::uint64_t stream = 4000; stream < 4000 + 20; ++stream) {
    Random         random(stream);
    IndexerOptions options{.queries = 40, .keys = 260, .top_k = random.any_of<int>({0, 5, 70}), .room = 192};
    options.ratio      = 1 + random.below(4);
    options.sequences  = random.below(4);
    options.heads      = random.any_of<int>({32, 64});
    options.processors = 1;
    run_and_check(options, stream);
    if (HasFailure()) return;
  }
}

/// Of an H100, with 32 MiB of scores at most.
TEST(IndexerEmulated, TheWorkspaceOfFewQueriesIsBounded) {
  set({.processors = 132});
  const Kokkos::Cuda exec;
  int                few = 0;
  for (const std::int64_t queries : {1, 2, 16, 32, 63, 64, 132, 210, 400, 524, 528})
    for (const std::int64_t keys : {0, 7, 15000, 63000, 262144})
      for (const std::int64_t top_k : {1, 512, 1024, 2048}) {
        Tributary::Impl::IndexerProblem problem{};
        problem.type  = ElementType::bfloat16;
        problem.batch = 1, problem.queries = queries, problem.keys = keys, problem.heads = 64, problem.head_dim = 128;
        if (!Tributary::Impl::SM90::has_few_queries(exec, problem, 0)) continue;
        ++few;
        Tributary::Impl::WorkspaceLayout layout;
        const auto                       plan = Tributary::Impl::SM90::plan_decode(exec, problem, top_k, layout);
        EXPECT_LT(layout.size(), 48'000'000u) << queries << " queries, " << keys << " keys, k " << top_k;
        EXPECT_GE(plan.list_capacity + plan.splits * (plan.places - 1), plan.keep);
      }
  EXPECT_GT(few, 100);
}

TEST(IndexerEmulated, RightOnEverySchedule) {
  run_and_check({.queries      = 30,
                 .keys         = 420,
                 .heads        = 32,
                 .top_k        = 40,
                 .trend        = Trend::rising_as_visited,
                 .ratio        = 1,
                 .query_offset = 390,
                 .room         = 192,
                 .processors   = 1},
                5000, 13);
  run_and_check({.type = ElementType::float8_e4m3, .queries = 40, .keys = 150, .top_k = 100, .sequences = 3, .room = 192}, 5001, 13);
}

/// What an omission brings about: a failure's message, or what is wrong with the results.
std::string found(IndexerRun& run, const Omission& omission, std::uint64_t seed) {
  Settings settings = Settings::of(seed, 1);
  settings.omission = omission;
  try {
    return run.run(settings);
  } catch (const Failure& failure) {
    return failure.what();
  }
}

using Of = Omission::Of;

/// Of mbarriers, counted from the last one: an item, its queries used and its queries there, twice; then of the keys.
TEST(IndexerEmulated, CatchesOmissionsOnEverySchedule) {
  IndexerRun run({.queries = 40, .keys = 600, .top_k = 40, .trend = Trend::rising_as_visited, .ratio = 1, .query_offset = 560, .room = 192},
                 6000);
  std::vector<Omission> omissions{{Of::atomic_or}, {Of::syncwarp}};
  for (const int barrier : {1, 2, 3, 4}) omissions.push_back({Of::named_barrier, barrier});
  for (const int barrier : {0, 3}) omissions.push_back({Of::mbarrier_wait, barrier});
  for (const Omission& omission : omissions)
    for (std::uint64_t seed = 0; seed < 45; seed += 8)
      ASSERT_NE(found(run, omission, seed), "")
          << "omission " << static_cast<int>(omission.of) << " " << omission.number << " seed " << seed;
}

TEST(IndexerEmulated, CatchesOmissionsOnSomeSchedule) {
  std::vector<Omission> omissions{{Of::comparison}};
  for (const int barrier : {1, 2, 4, 5, 6, 7}) omissions.push_back({Of::mbarrier_wait, barrier});
  for (const Omission& omission : omissions) {
    bool caught = false;
    for (std::uint64_t seed = 0; seed < 90 && !caught; ++seed) {
      if (omission.of == Of::comparison && Settings::of(seed, 1).schedule != Schedule::slow_warps) continue;  // a matter of lateness
      const bool short_items = omission.number < 6;  // many items; or more tiles than there is room for
      IndexerRun run({.queries = short_items ? 64 : 10, .keys = short_items ? 250 : 1000, .top_k = 20, .room = 192}, seed);
      caught = !found(run, omission, seed).empty();
    }
    EXPECT_TRUE(caught) << "omission " << static_cast<int>(omission.of) << " " << omission.number;
  }
}

}  // namespace
}  // namespace TributaryTest::Emulator
