#include "demo_parity.hpp"

#include <Tributary_Indexer.hpp>
#include <Tributary_Reference.hpp>
#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>
#include <vector>

namespace Tributary::Program {

namespace {

/// The reference's scores of query t, of the legal keys only.
std::vector<float> reference_scores(const DemoResult& result, std::int64_t t, std::int64_t legal) {
  const std::pair<std::int64_t, std::int64_t> row{t, t + 1};
  const DemoResult::Floats3                   scores("reference scores", 1, 1, result.key.extent(1));
  const IndexerOptions options{.legal_keys = RatioCausal{.ratio = result.ratio, .query_offset = static_cast<std::int32_t>(t)}};
  Reference::indexer_score(Kokkos::subview(result.query, Kokkos::ALL, row, Kokkos::ALL, Kokkos::ALL), result.key,
                           Kokkos::subview(result.weights, Kokkos::ALL, row, Kokkos::ALL), scores, options);
  return {scores.data(), scores.data() + legal};
}

/// Bounds the rounding error of query t's scores: each sums heads products of w and a sum of head_dim products, so that it is within
/// (head_dim + heads + 2) * 2^-24 * sum_h |w| sum_d |q k| whatever the order (Higham, Accuracy and Stability, section 3.1; one of
/// the two is for the reference's own rounding to float).
double error_bound(const DemoResult& result, std::int64_t t, std::int64_t legal) {
  const auto heads = result.query.extent_int(2), head_dim = result.query.extent_int(3);
  double     largest = 0;
  for (std::int64_t s = 0; s < legal; ++s) {
    double magnitude = 0;
    for (int h = 0; h < heads; ++h) {
      double product = 0;
      for (int d = 0; d < head_dim; ++d)
        product += std::abs(static_cast<double>(result.query(0, t, h, d)) * static_cast<double>(result.key(0, s, d)));
      magnitude += std::abs(static_cast<double>(result.weights(0, t, h))) * product;
    }
    largest = std::max(largest, magnitude);
  }
  return (head_dim + heads + 2) * 0x1p-24 * largest;
}

/// Empty, or what is wrong with row t.
std::string check_row(const DemoResult& result, std::int64_t t, Parity& parity) {
  const auto   top_k     = result.indices.extent_int(2);
  const auto   legal     = std::min<std::int64_t>(result.key.extent_int(1), (t + 1) / result.ratio);
  const auto   wanted    = std::min<std::int64_t>(top_k, legal);
  const auto   reference = reference_scores(result, t, legal);
  const double e         = error_bound(result, t, legal);
  parity.largest_bound   = std::max(parity.largest_bound, e);

  std::vector<bool> chosen(reference.size(), false);
  for (int i = 0; i < top_k; ++i) {
    const auto s = result.indices(0, t, i);
    if (i >= wanted && s != -1) return "an entry where there is no legal key left";
    if (i >= wanted) continue;
    if (s < 0 || s >= legal) return "key " + std::to_string(s) + " is not legal";
    if (chosen[static_cast<std::size_t>(s)]) return "key " + std::to_string(s) + " is chosen twice";
    chosen[static_cast<std::size_t>(s)] = true;
    const double error =
        std::abs(static_cast<double>(result.scores(0, t, i)) - static_cast<double>(reference[static_cast<std::size_t>(s)]));
    parity.largest_error = std::max(parity.largest_error, error);
    if (!(error <= e)) return "the score of key " + std::to_string(s) + " is off by " + std::to_string(error);
  }
  if (wanted == 0) return {};
  auto       sorted = reference;
  const auto kth    = sorted.begin() + (wanted - 1);
  std::nth_element(sorted.begin(), kth, sorted.end(), std::greater<>{});
  const double threshold = *kth;
  for (std::size_t s = 0; s < reference.size(); ++s) {
    if (chosen[s] && reference[s] < threshold - 2 * e) return "key " + std::to_string(s) + " is chosen and should not be";
    if (!chosen[s] && reference[s] > threshold + 2 * e) return "key " + std::to_string(s) + " is not chosen and should be";
  }
  return {};
}

}  // namespace

Parity check_parity(const DemoResult& result, std::int64_t rows) {
  Parity             parity;
  const std::int64_t queries = result.query.extent_int(1);
  const std::int64_t step    = std::max<std::int64_t>(1, queries / std::max<std::int64_t>(rows, 1));
  for (std::int64_t t = queries - 1; t >= 0; t -= step) {
    ++parity.rows;
    const std::string failure = check_row(result, t, parity);
    if (failure.empty()) continue;
    if (parity.failed_rows++ == 0) parity.first_failure = "query " + std::to_string(t) + ": " + failure;
  }
  return parity;
}

}  // namespace Tributary::Program
