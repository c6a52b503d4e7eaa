#pragma once
#include "indexer/IndexerCase.hpp"

// How far from the formula scores may be that are not exact.

namespace TributaryTest {

/// The unfused formula with its intermediate results rounded to a type.
template <class Intermediate, class Element>
float naive_score(const IndexerInputs<Element>& in, std::int64_t b, std::int64_t t, std::int64_t s) {
  const auto [batch, queries, keys, heads, head_dim] = in.shape();
  const auto rounded                                 = [](float value) { return static_cast<float>(Intermediate(value)); };
  float      sum                                     = 0;
  for (std::int64_t h = 0; h < heads; ++h) {
    float dot = 0;
    for (std::int64_t d = 0; d < head_dim; ++d) dot += static_cast<float>(in.query(b, t, h, d)) * static_cast<float>(in.key(b, s, d));
    if (in.scaled) dot *= in.query_scale(b, t, h) * in.key_scale(b, s);
    sum = rounded(sum + rounded(in.weights(b, t, h) * rounded(dot < 0 ? 0 : dot)));
  }
  return sum;
}

/// DESIGN's bound: max |out - formula in double| <= 2 max |naive - formula| + 1e-6 max |formula|; and for the choice, with e the bound:
/// a chosen key's score >= the k-th best - 2e, and every key above the k-th best + 2e is chosen.
template <class Element, class Intermediate = Element>
void expect_close(Level level, const IndexerShape& shape, const Mask& mask, std::int64_t top_k) {
  SCOPED_TRACE(text(shape) + ", " + seed_text());
  Random                     random(1);
  const auto                 in = normal_inputs<Element>(random, shape);
  const IndexerCall<Element> call(level, in, mask);
  const auto                 scores     = call.score(shape.keys);
  const Rows                 rows       = call.topk(top_k);
  const auto                 each_legal = [&](const auto& function) {
    for (std::int64_t b = 0; b < shape.batch; ++b)
      for (std::int64_t t = 0; t < shape.queries; ++t) {
        const auto legal = legal_interval(mask, b, t, shape.keys);
        for (std::int64_t s = legal.begin; s < legal.end; ++s) function(b, t, s);
      }
  };
  Array<double, 3> formula({shape.batch, shape.queries, shape.keys}, -infinity);
  double           naive_error = 0, largest = 0, error = 0;
  each_legal([&](std::int64_t b, std::int64_t t, std::int64_t s) {
    formula(b, t, s) = indexer_formula(in, b, t, s);
    naive_error      = std::max(naive_error, std::abs(static_cast<double>(naive_score<Intermediate>(in, b, t, s)) - formula(b, t, s)));
    largest          = std::max(largest, std::abs(formula(b, t, s)));
    error            = std::max(error, std::abs(static_cast<double>(scores(b, t, s)) - formula(b, t, s)));
  });
  const double bound = 2 * naive_error + 1e-6 * largest;
  EXPECT_LE(error, bound);
  EXPECT_LE(error, 2e-6 * largest);  // stricter: sums are float's, whatever the inputs' type

  for (std::int64_t b = 0; b < shape.batch; ++b)
    for (std::int64_t t = 0; t < shape.queries; ++t) {
      const auto          legal = legal_interval(mask, b, t, shape.keys);
      std::vector<double> best(formula.values.begin() + (b * shape.queries + t) * shape.keys,
                               formula.values.begin() + (b * shape.queries + t + 1) * shape.keys);
      std::stable_sort(best.begin(), best.end(), std::greater<>{});
      const auto        count = static_cast<std::size_t>(std::min(top_k, legal.end - legal.begin));
      const double      kth   = count == 0 ? infinity : best[count - 1];
      std::vector<bool> chosen(static_cast<std::size_t>(shape.keys), false);
      for (std::size_t i = 0; i < count; ++i) {
        const std::int32_t s = rows.indices(b, t, i);
        ASSERT_TRUE(legal.has(s)) << "query " << t << " chose key " << s;
        ASSERT_FALSE(chosen[static_cast<std::size_t>(s)]) << "key " << s << " twice";
        chosen[static_cast<std::size_t>(s)] = true;
        ASSERT_GE(formula(b, t, s), kth - 2 * error);
        ASSERT_EQ(bits_of(rows.scores(b, t, i)), bits_of(scores(b, t, s))) << "indexer_topk and indexer_score differ";
      }
      for (std::int64_t s = legal.begin; s < legal.end; ++s)
        ASSERT_TRUE(formula(b, t, s) <= kth + 2 * error || chosen[static_cast<std::size_t>(s)]) << "key " << s << " missed";
    }
}

}  // namespace TributaryTest
