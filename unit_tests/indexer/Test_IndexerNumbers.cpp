#include "indexer/IndexerNumbers.hpp"

// Scores that are not exact: how far from the formula they may be, and what must not change a bit of them.

namespace TributaryTest {
namespace {

class IndexerNumbers : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, IndexerNumbers, testing::ValuesIn(all_levels()), level_name);

TEST_P(IndexerNumbers, ScoresAreCloseToTheFormula) {
  for (const IndexerShape& shape : {IndexerShape{2, 9, 130, 5, 33}, {1, 17, 257, 12, 64}, {1, 3, 100, 64, 128}})
    for (const Mask& mask : {Mask{}, Mask{.ratio = 1, .query_offset = 60}}) {
      expect_close<float>(level(), shape, mask, 40);
      expect_close<bfloat16_t>(level(), shape, mask, 40);
      expect_close<half_t>(level(), shape, mask, 40);
      expect_close<float8_e4m3_t, bfloat16_t>(level(), shape, mask, 40);  // sums in FP8 would saturate
    }
}

TEST_P(IndexerNumbers, TwoRunsGiveTheSameBits) {
  Random                   random(2);
  const auto               in = normal_inputs<float>(random, {2, 40, 500, 6, 20});
  const IndexerCall<float> call(level(), in, {.ratio = 2, .query_offset = 400}, {.key_splits = 4});
  EXPECT_TRUE(same_rows(call.topk(30), call.topk(30)));
  EXPECT_TRUE(same_bits(call.score(500), call.score(500)));
}

TEST_P(IndexerNumbers, AQuerysResultDoesNotDependOnItsBatch) {
  SCOPED_TRACE(seed_text());
  Random     random(3);
  const auto in  = normal_inputs<bfloat16_t>(random, {3, 30, 200, 7, 19});
  const Rows all = IndexerCall<bfloat16_t>(level(), in).topk(25);
  for (std::int64_t b = 0; b < 3; ++b)
    for (const std::int64_t t : {0, 1, 17, 29}) {
      IndexerInputs<bfloat16_t> one({1, 1, 200, 7, 19});
      for (std::int64_t h = 0; h < 7; ++h) {
        one.weights(0, 0, h) = in.weights(b, t, h);
        for (std::int64_t d = 0; d < 19; ++d) one.query(0, 0, h, d) = in.query(b, t, h, d);
      }
      for (std::int64_t s = 0; s < 200; ++s)
        for (std::int64_t d = 0; d < 19; ++d) one.key(0, s, d) = in.key(b, s, d);
      const Rows alone = IndexerCall<bfloat16_t>(level(), one).topk(25);
      for (std::int64_t i = 0; i < 25; ++i) {
        ASSERT_EQ(all.indices(b, t, i), alone.indices(0, 0, i));
        ASSERT_EQ(bits_of(all.scores(b, t, i)), bits_of(alone.scores(0, 0, i)));
      }
    }
}

class IndexerCuts : public LevelTest {
 public:
  static IndexerOptions random_cut(Random& random) {
    return {.chunk_queries = random.any_of(std::vector<std::int64_t>{0, 1, 2, 7, 64, 65536}),
            .chunk_keys    = random.any_of(std::vector<std::int64_t>{0, 1, 16, 31, 32, 33, 100, 5000}),
            .key_splits    = random.any_of(std::vector<std::int64_t>{0, 1, 2, 5, 64})};
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, IndexerCuts, testing::ValuesIn(cutting_levels()), level_name);

template <class Element>
void no_cut_changes_a_bit(Level level) {
  SCOPED_TRACE(seed_text());
  Random random(4);
  for (const IndexerShape& shape : {IndexerShape{2, 37, 331, 5, 17}, {1, 3, 1030, 9, 8}, {1, 130, 65, 2, 30}}) {
    const auto in = normal_inputs<Element>(random, shape);
    Mask       range{.range = Array<std::int32_t, 3>({shape.batch, shape.queries, 2})};
    for (std::int64_t b = 0; b < shape.batch; ++b)
      for (std::int64_t t = 0; t < shape.queries; ++t) {
        (*range.range)(b, t, 0) = random.integer<std::int32_t>(-5, shape.keys);
        (*range.range)(b, t, 1) = random.integer<std::int32_t>(0, shape.keys + 5);
      }
    for (const Mask& mask : {Mask{}, Mask{.ratio = 3, .query_offset = 150}, range}) {
      const IndexerCall<Element> plain(level, in, mask);
      const Rows                 rows   = plain.topk(20);
      const auto                 scores = plain.score(shape.keys);
      EXPECT_TRUE(same_rows(rows, expected_indexer_topk(scores, mask, shape.keys, 20)));
      for (int i = 0; i < 12; ++i) {
        const IndexerOptions       cut = IndexerCuts::random_cut(random);
        const IndexerCall<Element> call(level, in, mask, cut);
        EXPECT_TRUE(same_rows(call.topk(20), rows) && same_bits(call.score(shape.keys), scores))
            << text(shape) << ", chunk_queries " << cut.chunk_queries << ", chunk_keys " << cut.chunk_keys << ", key_splits "
            << cut.key_splits;
      }
    }
  }
}

TEST_P(IndexerCuts, NoCutChangesABitOfFloat) { no_cut_changes_a_bit<float>(level()); }
TEST_P(IndexerCuts, NoCutChangesABitOfFloat8) { no_cut_changes_a_bit<float8_e4m3_t>(level()); }

TEST_P(IndexerCuts, LargeTopK) {
  Random     random(5);
  const auto in       = integer_inputs<float>(random, {1, 5, 9000, 1, 4});
  const auto expected = expected_scores(in, {}, 9000);
  for (const std::int64_t k : {2048, 5000, 9000})
    for (const std::int64_t splits : {1, 3})
      EXPECT_TRUE(
          same_rows(IndexerCall<float>(level(), in, {}, {.key_splits = splits}).topk(k), expected_indexer_topk(expected, {}, 9000, k)));
}

}  // namespace
}  // namespace TributaryTest
