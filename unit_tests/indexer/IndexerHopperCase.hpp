#pragma once
#include "indexer/IndexerNumbers.hpp"

// What the tests of the indexer's Hopper level share; nothing in builds without that level.

#if defined(TRIBUTARY_ENABLE_SM90)

namespace TributaryTest {

constexpr Level level = Level::hopper;

/// Numbers of key splits: 0 gives calls as small as most of these to the kernel for few queries; any other asks for the fused kernel.
constexpr std::int64_t few = 0, fused = 1;

/// indexer_topk by the kernel for few queries, fused, and fused in parts, against the brute force.
template <class Element>
void expect_exact_every_way(const IndexerInputs<Element>& in, const Mask& mask, const std::vector<std::int64_t>& top_ks) {
  SCOPED_TRACE(text(in.shape()));
  const std::int64_t keys     = in.shape().keys;
  const auto         expected = expected_scores(in, mask, keys);
  for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index})
    for (const std::int64_t splits : {few, fused, std::int64_t{3}}) {
      const IndexerCall<Element> call(level, in, mask, {.order = order, .key_splits = splits});
      if (order == TopkOrder::by_score) EXPECT_TRUE(same_bits(call.score(keys), expected)) << "scores, splits " << splits;
      for (const auto top_k : top_ks)
        EXPECT_TRUE(same_rows(call.topk(top_k), expected_indexer_topk(expected, mask, keys, top_k, order)))
            << "k " << top_k << ", splits " << splits << (order == TopkOrder::by_index ? ", by index" : "");
    }
}

/// The four pairs of heads and head dimension.
inline const std::vector<std::pair<std::int64_t, std::int64_t>> dimensions = {{64, 128}, {64, 64}, {32, 128}, {32, 64}};

/// A mask of any kind, packed sequences among them; for one batch entry.
inline Mask random_mask(Random& random, const IndexerShape& shape) {
  Mask       mask;
  const auto queries = static_cast<std::int32_t>(shape.queries), keys = static_cast<std::int32_t>(shape.keys);
  if (random.coin()) {
    mask.ratio        = random.integer<std::int32_t>(1, 4);
    mask.query_offset = random.integer<std::int32_t>(0, mask.ratio * keys + 5);
  }
  switch (random.integer(0, 3)) {
    case 0: mask.range = random_range(random, shape); break;
    case 1: {
      const std::int32_t a = random.integer<std::int32_t>(0, queries), b = random.integer<std::int32_t>(a, queries);
      const std::int32_t c = random.integer<std::int32_t>(0, keys), d = random.integer<std::int32_t>(c, keys);
      mask.cu_seqlens_q = {0, a, b};  // queries and keys after the last sequence belong to none
      mask.cu_seqlens_k = {0, c, d};
      break;
    }
    default: break;
  }
  return mask;
}

/// Inputs whose score of key s is value[s] / 256: a digit a head, so that products are whole numbers below 16 and float adds them up.  (A
/// sum of FP8 products keeps some 14 bits, fewer than these values have.)
template <class Element>
IndexerInputs<Element> inputs_with_scores(const std::vector<std::int32_t>& value, std::int64_t queries, std::int64_t heads,
                                          std::int64_t head_dim) {
  IndexerInputs<Element> in({1, queries, static_cast<std::int64_t>(value.size()), heads, head_dim});
  constexpr float        digit_weight[] = {256.0f, 16.0f, 1.0f, 0.0625f, 0.00390625f};
  for (std::int64_t t = 0; t < queries; ++t)
    for (int d = 0; d < 5; ++d) {
      const std::int64_t head = (t + 7 * d) % heads;
      in.weights(0, t, head)  = digit_weight[d];
      in.query(0, t, head, d) = Element(1.0f);
    }
  for (std::size_t s = 0; s < value.size(); ++s)
    for (int d = 0; d < 5; ++d) in.key(0, s, d) = Element(static_cast<float>((value[s] >> (16 - 4 * d)) & 15));
  return in;
}

/// What such inputs' scores are, without the sums over heads and components.
inline Rows expected_of(const std::vector<std::int32_t>& value, std::int64_t queries, std::int64_t top_k,
                        TopkOrder order = TopkOrder::by_score) {
  Rows rows(1, queries, top_k);
  for (std::int64_t t = 0; t < queries; ++t) {
    std::vector<ScoredIndex> entries;
    for (std::size_t s = 0; s < value.size(); ++s)
      entries.push_back({static_cast<float>(value[s]) * 0.00390625f, static_cast<std::int32_t>(s)});
    expect_row(rows, 0, t, entries, order);
  }
  return rows;
}

}  // namespace TributaryTest

#endif
