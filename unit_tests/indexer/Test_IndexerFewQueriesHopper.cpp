#include "indexer/IndexerHopperCase.hpp"

// The Hopper level's indexer where queries are few: a kernel of its own.

namespace TributaryTest {
namespace {

#if defined(TRIBUTARY_ENABLE_SM90)

class IndexerFewQueriesHopper : public HopperTest {};

/// As when decoding: one row of queries or a few against many keys.  Up to 4 (or 8) rows are both warpgroups' queries, which then take
/// turns at the key tiles: odd and even numbers of these, and none for one of the two.
template <class Element>
void few_queries(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (std::int64_t queries = 1; queries <= 20; queries += queries < 10 ? 1 : 5) {
    const auto& [heads, head_dim] = random.any_of(dimensions);
    const std::int64_t keys       = random.any_of(std::vector<std::int64_t>{1, 63, 65, 129, 300, 1000, 2500}) + random.integer(0, 64);
    const IndexerShape shape{1, queries, keys, heads, head_dim};
    expect_exact_every_way(integer_inputs<Element>(random, shape), random_mask(random, shape), {1, random.integer(2, 600), 2048});
  }
  // parts of many key tiles, of one tile of queries or two
  for (const auto& [queries, keys] : std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 40000}, {3, 17001}, {7, 16003}, {11, 16001}}) {
    const IndexerShape shape{1, queries, keys, 64, 64};
    const auto         in = integer_inputs<Element>(random, shape);
    expect_exact_every_way(in, {}, {1, 512, 2048});
    expect_exact_every_way(in, {.ratio = 1, .query_offset = static_cast<std::int32_t>(keys - 400)}, {512});
    expect_exact_every_way(in, random_mask(random, shape), {512});
  }
}

TEST_F(IndexerFewQueriesHopper, FewQueriesBfloat16) { few_queries<bfloat16_t>(16); }
TEST_F(IndexerFewQueriesHopper, FewQueriesHalf) { few_queries<half_t>(17); }
TEST_F(IndexerFewQueriesHopper, FewQueriesFloat8) { few_queries<float8_e4m3_t>(18); }

/// Every number of queries up to 16, all pairs of heads and head dimension, fewer keys than k and more, batches.
template <class Element>
void every_number_of_queries(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (std::int64_t queries = 1; queries <= 16; ++queries)
    for (const auto& [heads, head_dim] : dimensions) {
      const IndexerShape shape{1 + queries % 3 / 2, queries, random.integer(1, 3000), heads, head_dim};
      const auto         in = integer_inputs<Element>(random, shape);
      const Mask         mask =
          shape.batch == 1 ? random_mask(random, shape) : Mask{.ratio = 1, .query_offset = random.integer<std::int32_t>(0, 3000)};
      for (const std::int64_t top_k : {1, 64, 512, 2048}) {
        const TopkOrder order = random.coin() ? TopkOrder::by_score : TopkOrder::by_index;
        expect_exact(level, in, mask, {top_k}, {.order = order});
      }
    }
}

TEST_F(IndexerFewQueriesHopper, EveryNumberOfQueriesBfloat16) { every_number_of_queries<bfloat16_t>(23); }
TEST_F(IndexerFewQueriesHopper, EveryNumberOfQueriesHalf) { every_number_of_queries<half_t>(24); }
TEST_F(IndexerFewQueriesHopper, EveryNumberOfQueriesFloat8) { every_number_of_queries<float8_e4m3_t>(25); }

TEST_F(IndexerFewQueriesHopper, AQueryAloneHasTheBitsThatItHasAmongMany) {
  SCOPED_TRACE(seed_text());
  Random     random(21);
  const auto keys = std::int64_t{20000};
  const auto many = normal_inputs<float8_e4m3_t>(random, {1, 11, keys, 64, 128});
  const Rows rows = IndexerCall<float8_e4m3_t>(level, many, {}, {.key_splits = fused}).topk(512);
  for (const std::int64_t first : {0, 3, 7})
    for (const std::int64_t queries : {1, 3, 4}) {
      IndexerInputs<float8_e4m3_t> few({1, queries, keys, 64, 128});
      few.key = many.key, few.key_scale = many.key_scale;
      for (std::int64_t t = 0; t < queries; ++t)
        for (std::int64_t h = 0; h < 64; ++h) {
          few.weights(0, t, h)     = many.weights(0, first + t, h);
          few.query_scale(0, t, h) = many.query_scale(0, first + t, h);
          for (std::int64_t d = 0; d < 128; ++d) few.query(0, t, h, d) = many.query(0, first + t, h, d);
        }
      const Rows got = IndexerCall<float8_e4m3_t>(level, few).topk(512);
      for (std::int64_t t = 0; t < queries; ++t)
        for (std::int64_t i = 0; i < 512; ++i) {
          ASSERT_EQ(got.indices(0, t, i), rows.indices(0, first + t, i));
          ASSERT_EQ(bits_of(got.scores(0, t, i)), bits_of(rows.scores(0, first + t, i)));
        }
    }
}

/// Crowded bins: more candidates than the list of a row holds, or scores whose bins the sample does not foresee.
TEST_F(IndexerFewQueriesHopper, CrowdedScoresOfFewQueries) {
  SCOPED_TRACE(seed_text());
  Random             random(26);
  const std::int32_t keys = 60000;
  using Values            = std::vector<std::int32_t>;
  Values equal(keys, 77), two(keys), sixteen(keys), ascending(keys), late(keys), outliers(keys, 5);
  for (std::int32_t s = 0; s < keys; ++s) {
    two[s]       = s % 40 == 0 ? 900 : 800;
    sixteen[s]   = random.integer<std::int32_t>(0, 15) * 16;
    ascending[s] = s;
    late[s]      = s < keys - 3000 ? s % 50 : 1000 + s % 3000;
  }
  for (int i = 0; i < 300; ++i) outliers[random.integer<std::size_t>(0, keys - 1)] = random.integer<std::int32_t>(0, 1 << 19);
  int number = 0;
  for (const Values* const values : {&equal, &two, &sixteen, &ascending, &late, &outliers}) {
    SCOPED_TRACE("values " + std::to_string(number++));
    for (const std::int64_t queries : {1, 3, 8, 9}) {
      const auto in = inputs_with_scores<bfloat16_t>(*values, queries, 64, 64);
      for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index}) {
        const IndexerCall<bfloat16_t> call(level, in, {}, {.order = order});
        for (const std::int64_t k : {1, 512, 2048})
          EXPECT_TRUE(same_rows(call.topk(k), expected_of(*values, queries, k, order))) << queries << " queries, k " << k;
      }
    }
  }
}

/// Parts, sums and lists are worked on by teams in an order that changes from run to run.
TEST_F(IndexerFewQueriesHopper, RunsOfFewQueriesGiveTheSameBits) {
  SCOPED_TRACE(seed_text());
  Random random(27);
  for (const std::int64_t queries : {1, 4, 7, 16}) {
    const IndexerCall<half_t> call(level, normal_inputs<half_t>(random, {1, queries, 50000, 64, 128}));
    const Rows                rows = call.topk(1000);
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(same_rows(call.topk(1000), rows)) << queries << " queries";
  }
}

/// Key t gets the score t: a head for each of its digits to the base 256.
struct NumberedKeys {
  Kokkos::View<bfloat16_t****, Kokkos::LayoutRight, Memory> query;
  Kokkos::View<bfloat16_t***, Kokkos::LayoutRight, Memory>  key;
  Kokkos::View<float***, Kokkos::LayoutRight, Memory>       weights;

  KOKKOS_FUNCTION void operator()(std::int64_t i) const {
    const auto         keys = static_cast<std::int64_t>(key.extent(1));
    const std::int64_t b = i / keys, t = i % keys;
    for (int digit = 0; digit < 3; ++digit) {
      key(b, t, digit) = bfloat16_t(static_cast<float>(t >> (8 * digit) & 255));
      if (t > 0) continue;
      query(b, 0, digit, digit) = bfloat16_t(1.0f);
      weights(b, 0, digit)      = static_cast<float>(1 << (8 * digit));
    }
  }
};

TEST_F(IndexerFewQueriesHopper, FewQueriesOverAsManyKeysAsTwoTeamsTake) {
  // 132 processors: two teams a query, 130048 keys are what they take at most; one tile more is the fused kernel's.
  constexpr std::int64_t batch = 64, heads = 32, head_dim = 64, top_k = 100;
  for (const std::int64_t keys : {130048, 130048 - 64, 130048 + 64}) {
    const Kokkos::View<bfloat16_t****, Kokkos::LayoutRight, Memory>  query("query", batch, 1, heads, head_dim);
    const Kokkos::View<bfloat16_t***, Kokkos::LayoutRight, Memory>   key("key", batch, keys, head_dim);
    const Kokkos::View<float***, Kokkos::LayoutRight, Memory>        weights("weights", batch, 1, heads);
    const Kokkos::View<std::int32_t***, Kokkos::LayoutRight, Memory> indices("indices", batch, 1, top_k);
    Kokkos::parallel_for(Kokkos::RangePolicy<Space>(0, batch * keys), NumberedKeys{query, key, weights});
    Tributary::indexer_topk(Space{}, query, key, weights, indices, std::nullopt, {.level = level});
    const auto got = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, indices);
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t i = 0; i < top_k; ++i) ASSERT_EQ(got(b, 0, i), keys - 1 - i) << keys << " keys, batch entry " << b;
  }
}

/// Columns of stored scores that no legal key has are not written, and must not be read.
TEST_F(IndexerFewQueriesHopper, WhatTheWorkspaceHeldDoesNotMatter) {
  SCOPED_TRACE(seed_text());
  Random                      random(22);
  const Space                 exec;
  const IndexerShape          shape{1, 6, 20000, 64, 64};
  const auto                  in = integer_inputs<bfloat16_t>(random, shape);
  const View<std::int32_t, 3> indices("indices", 1, 6, 300);
  const View<float, 3>        scores("scores", 1, 6, 300);
  for (int i = 0; i < 4; ++i) {
    const Mask                    mask = random_mask(random, shape);
    const IndexerCall<bfloat16_t> call(level, in, mask);
    const View<std::byte, 1>      workspace(
             "workspace", Tributary::indexer_topk_workspace_size(exec, call.query, call.key, call.weights, indices, scores, call.options));
    Kokkos::deep_copy(workspace, std::byte{0x7e});  // as float 8.5e37
    Tributary::indexer_topk(exec, call.query, call.key, call.weights, indices, scores, call.options, workspace);
    const auto expected = expected_indexer_topk(expected_scores(in, mask, shape.keys), mask, shape.keys, 300);
    EXPECT_EQ(from_space<3>(indices).values, expected.indices.values);
    EXPECT_EQ(from_space<3>(scores).values, expected.scores.values);
  }
}

#endif

}  // namespace
}  // namespace TributaryTest
