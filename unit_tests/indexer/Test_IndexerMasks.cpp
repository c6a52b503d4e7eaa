#include "indexer/IndexerCase.hpp"

// Legal keys: full, ratio-causal, ranges, packed sequences.

namespace TributaryTest {
namespace {

using Numbers = std::vector<std::int32_t>;

class IndexerMasks : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, IndexerMasks, testing::ValuesIn(all_levels()), level_name);

TEST_P(IndexerMasks, CausalOrderSeesTheQueryItselfAndWhatIsBefore) {
  IndexerInputs<float> in({1, 3, 4, 1, 1});
  in.query.values.assign(3, 1);
  in.weights.values.assign(3, 1);
  in.key.values = {1, 2, 3, 4};
  EXPECT_EQ(IndexerCall<float>(level(), in, {.ratio = 1}).score(4).values,
            (std::vector<float>{1, -infinity, -infinity, -infinity, 1, 2, -infinity, -infinity, 1, 2, 3, -infinity}));
  // a key stands for two tokens, and the queries' positions are 2, 3, 4
  EXPECT_EQ(IndexerCall<float>(level(), in, {.ratio = 2, .query_offset = 2}).topk(3).indices.values,
            (Numbers{0, -1, -1, 1, 0, -1, 1, 0, -1}));
}

TEST_P(IndexerMasks, RatioCausal) {
  SCOPED_TRACE(seed_text());
  Random random;
  for (const IndexerShape& shape : {IndexerShape{2, 71, 67, 2, 5}, {1, 9, 300, 1, 3}})
    for (const std::int32_t ratio : {1, 2, 4, 7})
      for (const std::int32_t offset : {0, 1, 5, 64, 1000}) {
        SCOPED_TRACE("ratio " + std::to_string(ratio) + ", query_offset " + std::to_string(offset));
        expect_exact(level(), integer_inputs<float>(random, shape), {.ratio = ratio, .query_offset = offset}, {1, 20, shape.keys});
      }
  expect_exact(level(), integer_inputs<float>(random, {1, 3, 9, 1, 2}), {.ratio = 1, .query_offset = 2147483647}, {10});
  expect_exact(level(), integer_inputs<float>(random, {1, 3, 9, 1, 2}), {.ratio = 2147483647, .query_offset = 2147483645}, {10});
}

TEST_P(IndexerMasks, RatioCausalWithAnOffsetForEachBatchEntry) {
  SCOPED_TRACE(seed_text());
  Random random;
  for (const std::int32_t ratio : {1, 2, 4, 7})
    expect_exact(level(), integer_inputs<half_t>(random, {3, 17, 41, 3, 4}),
                 {.ratio = ratio, .query_offset = 99, .query_offsets = {0, 30, 7}}, {3, 41});
  // a negative one counts as 0
  const auto in = integer_inputs<float>(random, {2, 6, 6, 1, 2});
  EXPECT_TRUE(same_bits(IndexerCall<float>(level(), in, {.ratio = 1, .query_offsets = {-3, 2}}).score(6),
                        IndexerCall<float>(level(), in, {.ratio = 1, .query_offsets = {0, 2}}).score(6)));
}

TEST_P(IndexerMasks, RangesOfEveryQuery) {
  SCOPED_TRACE(seed_text());
  Random random;
  for (const IndexerShape& shape : {IndexerShape{1, 70, 90, 2, 3}, {3, 33, 1100, 1, 2}, {2, 5, 0, 1, 2}}) {
    const Mask mask{.range = random_range(random, shape)};
    expect_exact(level(), integer_inputs<float>(random, shape), mask, {1, 30, 90});
    expect_exact(level(), integer_inputs<float>(random, shape), mask, {30}, {.order = TopkOrder::by_index, .key_splits = 3});
  }
}

TEST_P(IndexerMasks, PackedSequencesCountFromTheirFirstRow) {
  IndexerInputs<float> in({1, 4, 5, 1, 1});
  in.query.values.assign(4, 1);
  in.weights.values.assign(4, 1);
  in.key.values = {1, 2, 3, 4, 5};
  // queries 0 1 | 2 3 with keys 0 1 2 | 3 4
  const Mask packed{.ratio = 1, .cu_seqlens_q = {0, 2, 4}, .cu_seqlens_k = {0, 3, 5}};
  EXPECT_EQ(IndexerCall<float>(level(), in, packed).topk(3).indices.values, (Numbers{0, -1, -1, 1, 0, -1, 0, -1, -1, 1, 0, -1}));
  // as many columns as the longest sequence has keys
  EXPECT_EQ(IndexerCall<float>(level(), in, packed).score(3).values,
            (std::vector<float>{1, -infinity, -infinity, 1, 2, -infinity, 4, -infinity, -infinity, 4, 5, -infinity}));
}

TEST_P(IndexerMasks, PackedSequencesWithEveryMask) {
  SCOPED_TRACE(seed_text());
  Random random;
  struct Lengths {
    Numbers      cu_seqlens_q, cu_seqlens_k;
    std::int64_t longest;
  };
  for (const Lengths& lengths : {Lengths{{0, 60}, {0, 150}, 150},
                                 // empty sequences of queries, of keys, of both, first and last too
                                 Lengths{{0, 0, 20, 20, 33, 33, 60, 60}, {0, 30, 30, 40, 117, 117, 150, 150}, 77},
                                 // rows before the first sequence and behind the last, and keys of none
                                 Lengths{{5, 12, 13, 50}, {10, 70, 75, 140}, 65}, Lengths{{0}, {0}, 4}}) {
    const IndexerShape shape{1, 60, 150, 2, 6};
    const auto         in        = integer_inputs<bfloat16_t>(random, shape);
    const auto         sequences = static_cast<std::int32_t>(lengths.cu_seqlens_q.size()) - 1;
    std::vector<Mask>  masks     = {{}, {.ratio = 1}, {.ratio = 4, .query_offset = 90}, {.range = random_range(random, shape)}};
    if (sequences > 0) {
      masks.push_back({.ratio = 2});
      for (std::int32_t b = 0; b < sequences; ++b) masks.back().query_offsets.push_back(random.integer<std::int32_t>(0, 80));
    }
    for (Mask& mask : masks) {
      SCOPED_TRACE("ratio " + std::to_string(mask.ratio) + (mask.range ? ", range" : "") + ", sequences " + std::to_string(sequences));
      mask.cu_seqlens_q = lengths.cu_seqlens_q;
      mask.cu_seqlens_k = lengths.cu_seqlens_k;
      for (const IndexerOptions& options : {IndexerOptions{}, IndexerOptions{.chunk_queries = 7, .chunk_keys = 40, .key_splits = 3}}) {
        expect_exact(level(), in, mask, {1, 25, 150}, options);
        const auto columns = lengths.longest;
        EXPECT_TRUE(same_bits(IndexerCall<bfloat16_t>(level(), in, mask, options).score(columns), expected_scores(in, mask, columns)));
      }
    }
  }
}

TEST_P(IndexerMasks, PackingTheSequencesChangesNoBit) {
  SCOPED_TRACE(seed_text());
  Random                                                   random;
  const std::vector<std::pair<std::int32_t, std::int32_t>> lengths = {{7, 33}, {1, 100}, {20, 5}, {9, 64}};
  std::int32_t                                             queries = 0, keys = 0;
  Mask                                                     mask{.ratio = 1, .query_offset = 3, .cu_seqlens_q = {0}, .cu_seqlens_k = {0}};
  for (const auto& [q, k] : lengths) {
    mask.cu_seqlens_q.push_back(queries += q);
    mask.cu_seqlens_k.push_back(keys += k);
  }
  const auto all    = normal_inputs<float>(random, {1, queries, keys, 5, 24});
  const Rows packed = IndexerCall<float>(level(), all, mask).topk(12);
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    const auto [q, k] = lengths[b];
    IndexerInputs<float> one({1, q, k, 5, 24});
    std::copy_n(all.query.values.begin() + mask.cu_seqlens_q[b] * 5 * 24, one.query.values.size(), one.query.values.begin());
    std::copy_n(all.weights.values.begin() + mask.cu_seqlens_q[b] * 5, one.weights.values.size(), one.weights.values.begin());
    std::copy_n(all.key.values.begin() + mask.cu_seqlens_k[b] * 24, one.key.values.size(), one.key.values.begin());
    const Rows alone = IndexerCall<float>(level(), one, {.ratio = 1, .query_offset = 3}).topk(12);
    for (std::int64_t t = 0; t < q; ++t)
      for (std::int64_t i = 0; i < 12; ++i) {
        ASSERT_EQ(packed.indices(0, mask.cu_seqlens_q[b] + t, i), alone.indices(0, t, i));
        ASSERT_EQ(bits_of(packed.scores(0, mask.cu_seqlens_q[b] + t, i)), bits_of(alone.scores(0, t, i)));
      }
  }
}

TEST_P(IndexerMasks, CuSeqlensThatAreNoPrefixSumsAreNotReadOutOfBounds) {
  SCOPED_TRACE(seed_text());
  Random             random;
  const IndexerShape shape{1, 40, 60, 2, 3};
  const auto         in      = integer_inputs<float>(random, shape);
  const Numbers      hostile = {-2147483647 - 1, -100, -1, 0, 1, 20, 39, 40, 41, 60, 61, 100000, 2147483647};
  for (int i = 0; i < 60; ++i) {
    Mask mask{.ratio = random.integer<std::int32_t>(0, 3), .query_offset = 50};
    if (mask.ratio == 0 && random.coin()) mask.range = random_range(random, shape);
    const auto sequences = random.integer(0, 6);
    for (std::int64_t b = 0; b <= sequences; ++b) {
      mask.cu_seqlens_q.push_back(random.any_of(hostile));
      mask.cu_seqlens_k.push_back(random.any_of(hostile));
      if (b > 0 && mask.ratio > 0) mask.query_offsets.push_back(random.any_of(hostile));
    }
    const IndexerCall<float> call(
        level(), in, mask,
        {.chunk_queries = random.integer(0, 9), .chunk_keys = random.integer(0, 40), .key_splits = random.integer(0, 3)});
    expect_keys_that_exist(call, 70);
  }
}

}  // namespace
}  // namespace TributaryTest
