#include <thread>

#include "CapturedGraph.hpp"
#include "KokkosEvents.hpp"
#include "topk/TopkCase.hpp"

// The Hopper level of topk where its work is cut: chunks of 4096 values, pools of 4096 to 6144 candidates, short rows a warp or less each,
// long rows in parts.  What it chooses is also tested with all levels' cases.  In builds without that level there is nothing here.

namespace TributaryTest {
namespace {

#if defined(TRIBUTARY_ENABLE_SM90)

constexpr Level level = Level::hopper;

class TopkHopper : public HopperTest {
 public:
  template <class Value>
  static void expect_right(const Array<Value, 3>& values, std::int64_t top_k, const TopkOptions& options = {}, const Range& range = {}) {
    EXPECT_TRUE(same_rows(topk_of(level, values, top_k, options, range), expected_topk(values, top_k, options.order, range)))
        << "rows " << values.extents[0] << " x " << values.extents[1] << ", n " << values.extents[2] << ", k " << top_k << ", key_splits "
        << options.key_splits << (options.order == TopkOrder::by_index ? ", by_index" : "");
  }
};

/// Rows that are hard on a threshold, a bin or a tie rule.
Array<float, 3> hard_rows(Random& random, std::int64_t n) {
  const std::vector<float> special = {nan, -nan, infinity, -infinity, 0.0f, -0.0f, 1e-45f, -1e-45f, 3.4028235e38f, -3.4028235e38f, 1.0f};
  Array<float, 3>          values({1, 10, n});
  for (std::int64_t j = 0; j < n; ++j) {
    values(0, 0, j) = static_cast<float>(j);                                                 // every entry beats all before it
    values(0, 1, j) = static_cast<float>(-j);                                                // none does
    values(0, 2, j) = 1.5f;                                                                  // nothing but ties
    values(0, 3, j) = random.integer<float>(-8, 7);                                          // sixteen values
    values(0, 4, j) = Kokkos::bit_cast<float>(0x7fc00000u + static_cast<std::uint32_t>(j));  // NaN
    values(0, 5, j) = random.any_of(special);
    values(0, 6, j) = random.coin() ? random.normal() : -infinity;           // masked
    values(0, 7, j) = j < n / 2 || j >= n / 2 + 3000 ? random.normal() : 9;  // the best side by side, and equal
    values(0, 8, j) = random.integer(0, 49) == 0 ? nan : std::exp(20 * random.normal());
    values(0, 9, j) = 1000.0f + 1e-3f * random.integer<float>(0, 999);
  }
  return values;
}

TEST_F(TopkHopper, HardRows) {
  SCOPED_TRACE(seed_text());
  Random random;
  for (const std::int64_t n : {4500, 40000}) {
    const auto values = hard_rows(random, n);
    for (const std::int64_t k : {1, 512, 2048})
      for (const std::int64_t splits : {1, 0, 3, 256}) {
        expect_right(values, k, {.key_splits = splits});
        expect_right(values, k, {.order = TopkOrder::by_index, .key_splits = splits});
      }
  }
}

/// Rows on which the sample that long rows begin with says little, or too much.
template <class Value>
void rows_that_mislead_a_sample() {
  SCOPED_TRACE(seed_text());
  Random             random(8);
  const std::int64_t n = 40000, segment = 32 * 16 / static_cast<std::int64_t>(sizeof(Value));  // what a warp loads at once
  Array<Value, 3>    values({1, 9, n});
  const auto         few = [](std::int64_t j) { return static_cast<float>(j % 7); };
  // The sample: the first of every so many segments as there are chunks.
  const std::int64_t chunk = 4096, chunks = (n + chunk - 1) / chunk;
  const auto         sampled = [&](std::int64_t j) { return j / segment % chunks == 0; };
  for (std::int64_t j = 0; j < n; ++j) {
    values(0, 0, j) = static_cast<Value>(20000 <= j && j < 24600 ? 9.0f : few(j));
    values(0, 1, j) = static_cast<Value>(20460 <= j && j < 24600 ? 9.0f : few(j));
    values(0, 2, j) = static_cast<Value>(j < 20000 ? -5.0f : j >= 30000 && j % 100 == 0 ? 3.0f : 0.0f);
    values(0, 3, j) = static_cast<Value>(sampled(j) ? 9.0f : few(j));                           // equal, and the best
    values(0, 4, j) = static_cast<Value>(sampled(j) && j % 128 == 0 ? 9.0f : random.normal());  // the best are there alone
    values(0, 5, j) = static_cast<Value>(sampled(j) ? nan : random.normal());
    values(0, 6, j) = static_cast<Value>(sampled(j) ? -infinity : few(j));
    values(0, 7, j) = static_cast<Value>(sampled(j) ? 10.0f + random.normal() : random.normal());
    values(0, 8, j) = static_cast<Value>(sampled(j) ? random.normal() - 10.0f : random.normal());  // more pass than there is room for
  }
  Array<std::int32_t, 3> range({1, 9, 2});
  for (std::int64_t row = 0; row < 9; ++row) range(0, row, 0) = static_cast<std::int32_t>(row * 37), range(0, row, 1) = 39000;
  for (const std::int64_t k : {1, 64, 300, 512, 1024, 1025, 2048})
    for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index}) {
      TopkHopper::expect_right(values, k, {.order = order, .key_splits = 1});
      TopkHopper::expect_right(values, k, {.order = order, .key_splits = 1}, range);
    }
}
TEST_F(TopkHopper, FloatRowsThatMisleadASample) { rows_that_mislead_a_sample<float>(); }
TEST_F(TopkHopper, Bfloat16RowsThatMisleadASample) { rows_that_mislead_a_sample<bfloat16_t>(); }

template <class Value>
void rows_around_borders() {
  SCOPED_TRACE(seed_text());
  Random random(1);
  for (const std::int64_t n : {1023, 1025, 4095, 4096, 4097, 6143, 6145, 8191, 8193, 12289, 16383, 16384, 16385, 30011}) {
    Array<Value, 3> values({1, 2, n});
    random.fill_with_normals(values);
    for (const std::int64_t k : {1, 7, 1024, 1025, 2047, 2048}) TopkHopper::expect_right(values, k);
  }
}
TEST_F(TopkHopper, FloatRowsAroundBorders) { rows_around_borders<float>(); }
TEST_F(TopkHopper, Bfloat16RowsAroundBorders) { rows_around_borders<bfloat16_t>(); }
TEST_F(TopkHopper, HalfRowsAroundBorders) { rows_around_borders<half_t>(); }

template <class Value>
void rows_anywhere_in_memory() {
  SCOPED_TRACE(seed_text());
  Random          random(2);
  Array<Value, 3> all({2, 3, 9050});
  random.fill_with_normals(all);
  for (std::int64_t pitch = 9050; pitch > 9041; pitch -= 3) {  // strides of all alignments
    Array<Value, 3> packed({2, 3, pitch});
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t r = 0; r < 3; ++r)
        for (std::int64_t j = 0; j < pitch; ++j) packed(b, r, j) = all(b, r, j);
    const auto in = in_space(packed);
    for (const std::int64_t first : {0, 1, 2, 3, 5, 7})
      for (const std::int64_t n : {1, 6, 500, 5003, 9030}) {
        Array<Value, 3> dense({2, 3, n});
        for (std::int64_t b = 0; b < 2; ++b)
          for (std::int64_t r = 0; r < 3; ++r)
            for (std::int64_t j = 0; j < n; ++j) dense(b, r, j) = packed(b, r, first + j);
        for (const std::int64_t splits : {1, 5}) {
          const View<std::int32_t, 3> indices("indices", 2, 3, 50);
          const View<float, 3>        scores("scores", 2, 3, 50);
          Tributary::topk(Space{}, Kokkos::subview(in, Kokkos::ALL, Kokkos::ALL, Kokkos::pair(first, first + n)), indices, scores,
                          {.level = level, .key_splits = splits});
          const Rows expected = expected_topk(dense, 50);
          EXPECT_TRUE(same_bits(from_space<3>(indices), expected.indices)) << "pitch " << pitch << ", first " << first << ", n " << n;
          EXPECT_TRUE(same_bits(from_space<3>(scores), expected.scores)) << "pitch " << pitch << ", first " << first << ", n " << n;
        }
      }
  }
}
TEST_F(TopkHopper, FloatRowsAnywhereInMemory) { rows_anywhere_in_memory<float>(); }
TEST_F(TopkHopper, Bfloat16RowsAnywhereInMemory) { rows_anywhere_in_memory<bfloat16_t>(); }

TEST_F(TopkHopper, RangesOfLongRows) {
  SCOPED_TRACE(seed_text());
  Random          random(3);
  Array<float, 3> values({2, 4, 20000});
  random.fill_with_integers(values, -3000, 3000);
  Array<std::int32_t, 3> range({2, 4, 2});
  for (int i = 0; i < 4; ++i) {
    random.fill_with_integers(range, -3, 20003);
    for (const std::int64_t k : {3, 900})
      for (const std::int64_t splits : {0, 1, 9}) expect_right(values, k, {.key_splits = splits}, range);
  }
}

/// A team has several rows, some of them empty.
TEST_F(TopkHopper, RangesOfManyLongRows) {
  SCOPED_TRACE(seed_text());
  Random          random(13);
  Array<float, 3> values({2, 350, 9000});
  random.fill_with_integers(values, -3000, 3000);
  Array<std::int32_t, 3> range({2, 350, 2});
  random.fill_with_integers(range, -3, 9003);
  for (int row = 100; row < 140; ++row) range(0, row, 1) = range(0, row, 0) + row % 3;
  for (const std::int64_t k : {3, 700}) expect_right(values, k, {.key_splits = 1}, range);
}

Array<std::int32_t, 3> range_of_rows(Random& random, std::int64_t rows, std::int64_t n) {
  Array<std::int32_t, 3> range({1, rows, 2});
  random.fill_with_integers(range, -2, n + 2);
  return range;
}

TEST_F(TopkHopper, ShortRowsOfAWarpEach) {
  SCOPED_TRACE(seed_text());
  Random random(4);
  for (const std::int64_t n : {0, 1, 31, 64, 65, 127, 128, 129, 700, 1023, 1024, 1025, 2047, 2048}) {
    Array<float, 3>        values({2, 301, n});
    Array<std::int32_t, 3> range({2, 301, 2});
    random.fill_with_integers(values, -300, 300);
    random.fill_with_integers(range, -2, n + 2);
    for (std::int64_t j = 0; j < n; ++j) values(0, 7, j) = 1.0f, values(1, 300, j) = nan, values(0, 300, j) = static_cast<float>(j % 3);
    for (const std::int64_t k : {1, 20, 64, 300, 1100}) {
      expect_right(values, k);
      expect_right(values, k, {.order = TopkOrder::by_index}, range);
    }
    Array<bfloat16_t, 3> bfloats({1, 600, n});
    random.fill_with_normals(bfloats);
    expect_right(bfloats, 33);
    expect_right(bfloats, 300, {}, Range(range_of_rows(random, 600, n)));
  }
}

/// Enough of them for a warp each.
template <class Value>
void hard_short_rows() {
  SCOPED_TRACE(seed_text());
  Random random(14);
  for (const std::int64_t n : {8, 61, 64, 100, 1000, 1024, 2001, 2048}) {
    Array<Value, 3> values({1, 520, n});
    for (std::int64_t r = 0; r < 520; r += 10) {
      const auto rows = hard_rows(random, n);
      for (std::int64_t i = 0; i < 10; ++i)
        for (std::int64_t j = 0; j < n; ++j) values(0, r + i, j) = static_cast<Value>(rows(0, i, j));
    }
    for (const std::int64_t k : {1, 8, 40, 64, 100, 256, 512})
      for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index}) TopkHopper::expect_right(values, k, {.order = order});
  }
}
/// They differ in their last bits, but for two that are far away.
TEST_F(TopkHopper, ShortRowsOfCloseValues) {
  SCOPED_TRACE(seed_text());
  Random random(15);
  for (const std::int64_t n : {64, 1024, 2048}) {
    Array<float, 3> values({1, 600, n});
    for (std::int64_t r = 0; r < 600; ++r)
      for (std::int64_t j = 0; j < n; ++j)
        values(0, r, j) = j == 5 ? -1e30f : j == 6 ? 1e30f : 1.0f + 0x1p-23f * random.integer<float>(0, 499);
    for (const std::int64_t k : {1, 8, 20, 64, 300}) expect_right(values, k);
  }
}
TEST_F(TopkHopper, HardShortFloatRows) { hard_short_rows<float>(); }
TEST_F(TopkHopper, HardShortBfloat16Rows) { hard_short_rows<bfloat16_t>(); }
TEST_F(TopkHopper, HardShortHalfRows) { hard_short_rows<half_t>(); }

TEST_F(TopkHopper, OnePartHoldsAllTheBest) {
  SCOPED_TRACE(seed_text());
  Random          random(5);
  Array<float, 3> values({1, 3, 60000});
  random.fill_with_normals(values);
  for (std::int64_t j = 0; j < 60000; ++j) {  // neighbouring segments of 128 values lie in different parts
    if (j / 128 % 8 == 3) values(0, 0, j) += 100;
    if (j / 128 % 8 >= 6) values(0, 1, j) = 5.0f;
    if (j / 128 % 8 != 0) values(0, 2, j) = nan;
  }
  for (const std::int64_t k : {1, 100, 2000}) {
    expect_right(values, k, {.key_splits = 8});
    expect_right(values, k, {.order = TopkOrder::by_index, .key_splits = 16});
  }
}

/// Two parts, of 1856 listed entries each: the one with all the best cuts its pool in the middle of a chunk of equal scores, lists later
/// ones than the bound as well, and is read again from the bound down.
TEST_F(TopkHopper, APartReadAgainGivesEqualScoresOnce) {
  Array<float, 3> values({1, 4, 16384});
  for (std::int32_t j = 0; j < 16384; ++j) {  // segments of 128 values lie in part 0 and part 1 by turns
    const std::int32_t in_part = j / 256 * 128 + j % 128;
    const bool         best    = j / 128 % 2 == 0 && (in_part < 4096 ? in_part % 24 < 7 : in_part % 25 < 6);
    for (std::int64_t r = 0; r < 4; ++r) values(0, r, j) = best ? 5.0f : static_cast<float>(-j);
  }
  expect_right(values, 2048, {.key_splits = 2});
  expect_right(values, 2048, {.order = TopkOrder::by_index, .key_splits = 2});
}

/// The last cut of a part finds its bins shifted, by one better value that came late, against those of the cut before.  That one dropped
/// what of three warps' equal scores the pool had taken past its bound; which three come first is not known, so there is a row for each.
TEST_F(TopkHopper, APartsBoundNeverFalls) {
  SCOPED_TRACE(seed_text());
  Random          random(12);
  Array<float, 3> values({1, 56, 24576});
  std::int64_t    r = 0;
  for (std::int32_t a = 0; a < 8; ++a)
    for (std::int32_t b = a + 1; b < 8; ++b)
      for (std::int32_t c = b + 1; c < 8; ++c, ++r) {
        const auto late = random.integer<std::int32_t>(4096, 8191);  // of the chunks of 4096 the second one is read last
        for (std::int32_t j = 0; j < 24576; ++j) {
          const std::int32_t in_part = j / 256 * 128 + j % 128, warp = in_part / 128 % 8;
          const bool         taken = warp == a || warp == b || warp == c || in_part >= 11264 + 128 * (c + 1);
          const bool         best  = j / 128 % 2 == 0 && (in_part == late || (in_part >= 8192 && taken));
          values(0, r, j)          = best ? 5.0f : static_cast<float>(-j - 1);
        }
      }
  expect_right(values, 2048, {.key_splits = 2});
}

TEST_F(TopkHopper, OneHugeRow) {
  SCOPED_TRACE(seed_text());
  Random          random(6);
  Array<float, 3> values({1, 1, 3000017});
  random.fill_with_normals(values);
  for (const std::int64_t k : {1, 2048}) {
    expect_right(values, k);
    expect_right(values, k, {.key_splits = 1});
  }
  for (std::int64_t j = 0; j < values.extents[2]; ++j) values(0, 0, j) = static_cast<float>(j / 7);
  expect_right(values, 1000);
}

/// A value of a row that is nowhere stored on the host.
KOKKOS_INLINE_FUNCTION float made_up_value(std::int64_t row, std::int64_t column) {
  std::uint64_t z = static_cast<std::uint64_t>(row * 1031 + column) * 0x9e3779b97f4a7c15u;
  z               = (z ^ (z >> 29)) * 0xbf58476d1ce4e5b9u;
  return static_cast<float>(static_cast<std::int32_t>(z >> 48) % 3001);
}
struct MakeUp {
  View<float, 2>       values;
  KOKKOS_FUNCTION void operator()(std::int64_t i) const {
    const auto columns               = static_cast<std::int64_t>(values.extent(1));
    values(i / columns, i % columns) = made_up_value(i / columns, i % columns);
  }
};

void many_rows(std::int64_t rows, std::int64_t columns, std::int64_t top_k) {
  const View<float, 2> values(Kokkos::view_alloc("values", Kokkos::WithoutInitializing), rows, columns);
  Kokkos::parallel_for("make up", Kokkos::RangePolicy<Space, Kokkos::IndexType<std::int64_t>>(0, rows * columns), MakeUp{values});
  const View<std::int32_t, 2> indices("indices", rows, top_k);
  const View<float, 2>        scores("scores", rows, top_k);
  Tributary::topk(Space{}, values, indices, scores, {.level = level});
  const auto given_indices = from_space<2>(indices);
  const auto given_scores  = from_space<2>(scores);
  for (std::int64_t row = 0; row < rows; row += row < 100 || row > rows - 100 ? 1 : 997) {
    Rows                     expected(1, 1, top_k);
    std::vector<ScoredIndex> entries;
    for (std::int32_t j = 0; j < columns; ++j) entries.push_back({made_up_value(row, j), j});
    expect_row(expected, 0, 0, entries);
    for (std::int64_t i = 0; i < top_k; ++i) {
      ASSERT_EQ(given_indices(row, i), expected.indices(0, 0, i)) << "row " << row << ", place " << i;
      ASSERT_EQ(given_scores(row, i), expected.scores(0, 0, i)) << "row " << row << ", place " << i;
    }
  }
}
TEST_F(TopkHopper, AMillionShortRows) { many_rows(1000003, 64, 8); }
TEST_F(TopkHopper, ManyMediumRows) {
  many_rows(100003, 1000, 16);
  many_rows(20001, 2048, 256);
  many_rows(20001, 2050, 256);
  many_rows(700, 9000, 512);
}

TEST_F(TopkHopper, RepeatsItselfToTheBit) {
  SCOPED_TRACE(seed_text());
  Random     random(7);
  const auto values = hard_rows(random, 50000);
  const Rows first  = topk_of(level, values, 700, {.key_splits = 37});
  for (int i = 0; i < 20; ++i)
    for (const std::int64_t splits : {37, 1}) ASSERT_TRUE(same_rows(topk_of(level, values, 700, {.key_splits = splits}), first));
}

void two_instances_at_the_same_time(bool by_two_threads) {
  SCOPED_TRACE(by_two_threads ? "by two threads" : "by one thread");
  SCOPED_TRACE(seed_text());
  Random     random(8);
  const auto instances = Kokkos::Experimental::partition_space(Space{}, std::vector<int>{1, 1});
  struct Call {
    Array<float, 3>       values;
    View<float, 3>        in, scores;
    View<std::int32_t, 3> indices;
    View<std::byte, 1>    workspace;
  };
  std::vector<Call> calls(2);
  for (std::size_t c = 0; c < 2; ++c) {
    Call& call  = calls[c];
    call.values = Array<float, 3>({1, c == 0 ? 2 : 9, 100000});
    random.fill_with_normals(call.values);
    call.in      = in_space(call.values);
    call.indices = View<std::int32_t, 3>("indices", 1, call.values.extents[1], 300);
    call.scores  = View<float, 3>("scores", 1, call.values.extents[1], 300);
    call.workspace =
        View<std::byte, 1>("workspace", Tributary::topk_workspace_size(instances[c], call.in, call.indices, call.scores, {.level = level}));
  }
  Kokkos::fence();
  const auto run = [&](std::size_t c) {
    Tributary::topk(instances[c], calls[c].in, calls[c].indices, calls[c].scores, {.level = level}, calls[c].workspace);
  };
  if (by_two_threads) {
    std::vector<std::thread> threads;
    for (std::size_t c = 0; c < 2; ++c)
      threads.emplace_back([&run, c] {
        for (int i = 0; i < 300; ++i) run(c);
      });
    for (std::thread& thread : threads) thread.join();
  } else {
    for (int i = 0; i < 20; ++i)
      for (std::size_t c = 0; c < 2; ++c) run(c);
  }
  Kokkos::fence();
  for (const Call& call : calls) {
    const Rows expected = expected_topk(call.values, 300);
    EXPECT_TRUE(same_bits(from_space<3>(call.indices), expected.indices));
    EXPECT_TRUE(same_bits(from_space<3>(call.scores), expected.scores));
  }
}

TEST_F(TopkHopper, TwoInstancesAtTheSameTime) {
  for (const bool by_two_threads : {false, true}) two_instances_at_the_same_time(by_two_threads);
}

TEST_F(TopkHopper, ACapturedCallFollowsItsInputs) {
  SCOPED_TRACE(seed_text());
  Random      random(9);
  const Space exec = another_instance();
  for (const auto& [rows, n, k] : {std::array{3, 70000, 512}, {300, 9000, 100}, {40, 5000, 100}, {600, 100, 10}}) {
    Array<float, 3> values({1, rows, n});
    random.fill_with_normals(values);
    const auto                  in = in_space(values);
    const View<std::int32_t, 3> indices("indices", 1, rows, k), merged("merged", 1, rows, k);
    const View<float, 3>        scores("scores", 1, rows, k), merged_scores("merged_scores", 1, rows, k);
    const View<std::byte, 1>    workspace("workspace", Tributary::topk_workspace_size(exec, in, indices, scores, {.level = level}));
    // the list again, its indices moved past the first one's: topk_merge in the same graph
    const std::vector<Tributary::TopkList> lists = {{.indices = indices, .scores = scores, .index_offset = n},
                                                    {.indices = indices, .scores = scores}};
    const View<std::byte, 1>               merge_workspace("workspace",
                                                           Tributary::topk_merge_workspace_size(exec, lists, merged, merged_scores, {.level = level}));
    const auto                             call = [&] {
      Tributary::topk(exec, in, indices, scores, {.level = level}, workspace);
      Tributary::topk_merge(exec, lists, merged, merged_scores, {.level = level}, merge_workspace);
    };
    const CapturedGraph graph(exec, call);
    for (int replay = 0; replay < 3; ++replay) {
      random.fill_with_normals(values);
      Kokkos::deep_copy(in, in_space(values));
      Kokkos::deep_copy(workspace, std::byte{0xff});
      graph.launch();
      const Rows expected = expected_topk(values, k);
      EXPECT_TRUE(same_bits(from_space<3>(indices), expected.indices));
      EXPECT_TRUE(same_bits(from_space<3>(scores), expected.scores));
      const List once{expected};
      EXPECT_TRUE(same_bits(from_space<3>(merged), expected_merge({once, {expected, n}}, k).indices));
    }
  }
}

TEST_F(TopkHopper, MergesLongLists) {
  SCOPED_TRACE(seed_text());
  Random random(10);
  for (const auto& [length, lists, k] : {std::array{3000, 16, 2048}, {2048, 3, 2048}, {20000, 2, 10}}) {
    std::vector<List> in;
    for (int l = 0; l < lists; ++l) {
      in.push_back({Rows(1, 2, length), l * length});
      for (std::int64_t r = 0; r < 2; ++r)
        for (std::int32_t i = 0; i < length; ++i) {
          in.back().entries.indices(0, r, i) = length - 1 - i;
          in.back().entries.scores(0, r, i)  = r == 0 ? random.normal() : random.integer<float>(0, 9);
        }
    }
    EXPECT_TRUE(same_rows(merge_of(level, in, k), expected_merge(in, k)));
    EXPECT_TRUE(same_rows(merge_of(level, in, k, {.order = TopkOrder::by_index}), expected_merge(in, k, TopkOrder::by_index)));
  }
}

TEST_F(TopkHopper, WhatItCannotTakeIsRefusedAndElsewhereTakenAutomatically) {
  Array<float, 3> values({1, 1, 3000});
  Random          random(11);
  random.fill_with_normals(values);
  expect_refusal([&] { topk_of(level, values, 2049); }, {"topk: ", "no Hopper level", "k is 2049, more than 2048"});
  EXPECT_TRUE(same_rows(topk_of(Level::automatic, values, 2049), expected_topk(values, 2049)));
  const std::vector<List> lists(17, List{Rows(1, 1, 0)});
  expect_refusal([&] { merge_of(level, lists, 3); }, {"topk_merge: ", "no Hopper level", "17 lists, more than 16"});
}

#endif

}  // namespace
}  // namespace TributaryTest
