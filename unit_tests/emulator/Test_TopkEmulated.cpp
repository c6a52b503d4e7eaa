#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <ostream>
#include <vector>

#include "EmulatedData.hpp"
#include "Tributary_Topk.hpp"
#include "common/workers.hpp"
#include "emulator.hpp"
#include "sm90/topk/topk.hpp"
#include "topk/entry.hpp"

// topk's Hopper kernels under the emulator.

namespace TributaryTest::Emulator {
namespace {

using namespace Tributary;

/// How values run along a row.  too_high: the first of the chunks that a long row comes in has the best values by far; too_low: it is the
/// other way round.  close: they differ in their last bits, but for two that are far away.  nans: but for every ninth, a NaN of any bits.
enum class Values { integers, normals, specials, ascending, descending, equal, too_high, too_low, close, nans };

struct TopkCase {
  ElementType type  = ElementType::float32;
  int         batch = 1, rows = 3, columns = 9000, top_k = 40;
  Values      values     = Values::integers;
  bool        range      = false;
  int         padding    = 0;  ///< elements between rows
  int         splits     = 0;
  TopkOrder   order      = TopkOrder::by_score;
  int         processors = 1;
};

void PrintTo(const TopkCase& c, std::ostream* out) {
  *out << "type " << static_cast<int>(c.type) << ", " << c.batch << " x " << c.rows << " x " << c.columns << ", k " << c.top_k
       << ", values " << static_cast<int>(c.values) << ", range " << c.range << ", padding " << c.padding << ", splits " << c.splits
       << ", order " << static_cast<int>(c.order) << ", processors " << c.processors;
}

float value_of(const TopkCase& c, int column, Random& random) {
  switch (c.values) {
    case Values::integers: return static_cast<float>(random.below(401) - 200);
    case Values::normals: return random.normal();
    case Values::specials:
      return random.any_of<float>({0.0f, -0.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                                   -std::numeric_limits<float>::infinity(), 1.0f, static_cast<float>(random.below(9))});
    case Values::ascending: return static_cast<float>(column / 64);
    case Values::descending: return static_cast<float>(-column / 64);
    case Values::equal: return 3.0f;
    case Values::too_low: return random.normal() + (column / (c.type == ElementType::float32 ? 128 : 256) % 5 == 0 ? 0.0f : 100.0f);
    case Values::close: return column == 5 ? -1e30f : column == 6 ? 1e30f : 1.0f + 0x1p-23f * static_cast<float>(random.below(500));
    case Values::nans:
      return column % 9 == 0 ? random.normal() : std::bit_cast<float>(0x7fc00000u + static_cast<std::uint32_t>(random.below(1 << 22)));
    case Values::too_high:
      return column / (c.type == ElementType::float32 ? 128 : 256) % 3 == 0 && column % 7 == 0 ? 100.0f : random.normal();
  }
  return 0.0f;
}

template <class Value>
void run_and_check(const TopkCase& c, std::uint64_t stream) {
  SCOPED_TRACE(testing::PrintToString(c) + ", stream " + std::to_string(stream));
  Random                     random(stream);
  const std::int64_t         row_stride = c.columns + c.padding, rows = std::int64_t{c.batch} * c.rows;
  GuardedArray<Value>        values(rows * row_stride);
  GuardedArray<std::int32_t> range(rows * 2), indices(rows * c.top_k);
  GuardedArray<float>        scores(rows * c.top_k);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (int j = 0; j < row_stride; ++j)
      values[row * row_stride + j] = static_cast<Value>(j < c.columns ? value_of(c, j, random) : std::numeric_limits<float>::quiet_NaN());
    for (int i = 0; i < 2; ++i) range[row * 2 + i] = random.below(c.columns + 7) - 3;
    if (random.one_in(3)) range[row * 2 + 1] = range[row * 2] + random.below(100);
  }
  const Impl::TopkArguments arguments{.type       = c.type,
                                      .values     = {values.data(), {c.batch, c.rows, c.columns}, {c.rows * row_stride, row_stride, 1}},
                                      .range      = {range.data(), {c.batch, c.rows, 2}, {c.rows * 2, 2, 1}},
                                      .has_range  = c.range,
                                      .indices    = {indices.data(), {c.batch, c.rows, c.top_k}, {c.rows * c.top_k, c.top_k, 1}},
                                      .scores     = {scores.data(), {c.batch, c.rows, c.top_k}, {c.rows * c.top_k, c.top_k, 1}},
                                      .has_scores = true};
  const TopkOptions         options{.order = c.order, .key_splits = c.splits};
  const Impl::TopkOutput    output{.indices       = indices.data(),
                                   .scores        = scores.data(),
                                   .index_strides = {c.rows * c.top_k, c.top_k},
                                   .score_strides = {c.rows * c.top_k, c.top_k},
                                   .top_k         = c.top_k,
                                   .order         = c.order};
  set(Settings::of(stream, c.processors));
  const Kokkos::Cuda          exec;
  const std::size_t           bytes = Impl::SM90::topk_workspace_size(exec, arguments, options);
  GuardedArray<std::uint64_t> workspace(static_cast<std::int64_t>(bytes / 8 + 1));
  std::fill(indices.begin(), indices.end(), -7);
  try {
    Impl::SM90::topk(exec, arguments, options, output, reinterpret_cast<std::byte*>(workspace.data()));
  } catch (const Failure& failure) {
    FAIL() << failure.what();
  }

  for (std::int64_t row = 0; row < rows; ++row) {
    const int begin = c.range ? std::clamp(range[row * 2], 0, c.columns) : 0;
    const int end   = c.range ? std::clamp(range[row * 2 + 1], begin, c.columns) : c.columns;

    std::vector<Impl::Entry> expected;
    for (int j = begin; j < end; ++j)
      expected.push_back(Impl::make_entry(Impl::sortable(static_cast<float>(values[row * row_stride + j])), static_cast<std::uint32_t>(j)));
    std::sort(expected.rbegin(), expected.rend());
    if (expected.size() > static_cast<std::size_t>(c.top_k)) expected.resize(static_cast<std::size_t>(c.top_k));
    if (c.order == TopkOrder::by_index)
      std::sort(expected.begin(), expected.end(), [](Impl::Entry a, Impl::Entry b) { return Impl::index_of(a) < Impl::index_of(b); });
    for (int i = 0; i < c.top_k; ++i) {
      const bool exists = static_cast<std::size_t>(i) < expected.size();
      const auto entry  = exists ? expected[static_cast<std::size_t>(i)] : Impl::no_entry;
      ASSERT_EQ(indices[row * c.top_k + i], exists ? Impl::index_of(entry) : -1) << "row " << row << ", place " << i;
      const float score = exists ? Impl::score_of(entry) : -std::numeric_limits<float>::infinity();
      ASSERT_EQ(std::bit_cast<std::uint32_t>(scores[row * c.top_k + i]), std::bit_cast<std::uint32_t>(score))
          << "row " << row << ", place " << i;
    }
  }
}

void run_and_check(const TopkCase& c, std::uint64_t stream) {
  if (c.type == ElementType::float32) return run_and_check<float>(c, stream);
  if (c.type == ElementType::bfloat16) return run_and_check<bfloat16_t>(c, stream);
  run_and_check<half_t>(c, stream);
}

TopkCase any_case(Random& random) {
  return {.type       = random.any_of<ElementType>({ElementType::float32, ElementType::bfloat16, ElementType::float16}),
          .batch      = 1 + random.below(2),
          .rows       = 1 + random.below(5),
          .columns    = 8192 + random.below(4000),
          .top_k      = random.any_of<int>({1, 3, 40, 300, 700, 2000}),
          .values     = random.any_of<Values>({Values::integers, Values::normals, Values::specials, Values::ascending, Values::descending,
                                               Values::equal, Values::too_high, Values::close}),
          .range      = random.one_in(2),
          .padding    = random.below(9),
          .splits     = random.one_in(4) ? 3 : 1,
          .order      = random.one_in(3) ? TopkOrder::by_index : TopkOrder::by_score,
          .processors = 1};
}

/// A team has several rows.
TEST(TopkEmulated, LongRows) {
  for (std::uint64_t stream = 100; stream < 100 + 25; ++stream) {
    Random random(stream);
    run_and_check(any_case(random), stream);
    if (HasFailure()) return;
  }
}

/// Five chunks, of which the first one promises so few that the others are not expected to fill the pool.
TEST(TopkEmulated, LongRowsThatOverflow) {
  for (const ElementType type : {ElementType::float32, ElementType::bfloat16})
    for (const int top_k : {1, 40, 300})
      run_and_check({.type = type, .columns = 20480, .top_k = top_k, .values = Values::too_low, .splits = 1}, 600);
}

/// Many of them empty.
TEST(TopkEmulated, RangesOfLongRows) {
  for (std::uint64_t stream = 200; stream < 200 + 25; ++stream) {
    Random   random(stream);
    TopkCase c = any_case(random);
    c.range    = true;
    c.splits   = 1;
    c.rows     = 1 + random.below(8);
    run_and_check(c, stream);
    if (HasFailure()) return;
  }
}

TEST(TopkEmulated, ShorterRows) {
  for (std::uint64_t stream = 300; stream < 300 + 30; ++stream) {
    Random   random(stream);
    TopkCase c = any_case(random);
    c.columns  = random.below(3000);
    run_and_check(c, stream);
    if (HasFailure()) return;
  }
}

/// So many rows that each is a warp's, or eight threads' up to 64 values.
TopkCase many_short_rows(Random& random, int columns) {
  TopkCase c = any_case(random);
  c.batch    = 1;
  c.rows     = 512 + random.below(3);
  c.columns  = columns;
  c.top_k    = random.any_of<int>({1, 8, 40, 64, 100, 256, 300, 512});
  c.padding  = random.one_in(2) ? 0 : c.padding;
  c.splits   = 1;
  return c;
}

TEST(TopkEmulated, RowsOfAWarp) {
  for (std::uint64_t stream = 400; stream < 400 + 12; ++stream) {
    Random   random(stream);
    TopkCase c = many_short_rows(
        random, random.any_of<int>({128, 65 + random.below(200), 1 + random.below(1024), 1024, 1025 + random.below(1000), 2048}));
    if (c.columns > 2024) c.padding = 0;  // where 2048 values are not aligned a row is a team's
    run_and_check(c, stream);
    if (HasFailure()) return;
  }
}

/// Keys of 32 bits do not tell them apart.
TEST(TopkEmulated, ShortRowsOfCloseValues) {
  for (const int columns : {64, 1024})
    for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index})
      run_and_check({.rows = 512, .columns = columns, .top_k = 20, .values = Values::close, .splits = 1, .order = order}, 700);
}

/// There are fewer numbers than wanted.
TEST(TopkEmulated, ShortRowsOfNans) {
  for (const ElementType type : {ElementType::float32, ElementType::bfloat16, ElementType::float16})
    for (const int columns : {60, 64, 1000, 2048})
      run_and_check({.type = type, .rows = 512, .columns = columns, .top_k = 300, .values = Values::nans, .splits = 1}, 800);
}

TEST(TopkEmulated, RowsOfEightThreads) {
  for (std::uint64_t stream = 500; stream < 500 + 15; ++stream) {
    Random random(stream);
    run_and_check(many_short_rows(random, random.any_of<int>({64, 1 + random.below(64)})), stream);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace TributaryTest::Emulator
