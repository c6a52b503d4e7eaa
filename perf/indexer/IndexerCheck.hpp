#pragma once
#include <Tributary_Reference.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/device.hpp"
#include "indexer/IndexerInputs.hpp"

// Results of indexer_topk on a CUDA device against the reference, on a few rows: a wrong result is not timed.

namespace Tributary::Benchmark {

#ifdef KOKKOS_ENABLE_CUDA

/// The reference's scores of one query's legal keys; its keys are spread over the host's threads.
template <class Element>
class ReferenceScores {
 public:
  explicit ReferenceScores(const IndexerInputs<Element>& in) : in_(in), key_(on_host(in.key)), key_scale_(on_host(in.key_scale)) {}

  std::vector<float> operator()(std::int64_t query, std::int64_t legal_keys) const {
    const auto                        row = std::pair(query, query + 1);
    const auto                        q   = on_host(Kokkos::subview(in_.query, row, Kokkos::ALL, Kokkos::ALL));
    const auto                        w   = on_host(Kokkos::subview(in_.weights, row, Kokkos::ALL));
    IndexerOptions                    options;
    Array<float**, Kokkos::HostSpace> query_scale;
    if (in_.scaled) options.query_scale = query_scale = on_host(Kokkos::subview(in_.query_scale, row, Kokkos::ALL));
    std::vector<float> scores(static_cast<std::size_t>(legal_keys));
    const auto         score_part = [&](std::int64_t begin, std::int64_t end) {
      if (begin == end) return;
      const auto     part         = std::pair(begin, end);
      IndexerOptions part_options = options;
      if (in_.scaled) part_options.key_scale = Kokkos::subview(key_scale_, part);
      const Kokkos::View<float**, Kokkos::LayoutRight, Kokkos::HostSpace> out(scores.data() + begin, 1, end - begin);
      Reference::indexer_score(q, Kokkos::subview(key_, part, Kokkos::ALL), w, out, part_options);
    };
    const std::int64_t       threads = std::max(1u, std::thread::hardware_concurrency());
    std::vector<std::thread> workers;
    for (std::int64_t i = 0; i < threads; ++i) workers.emplace_back(score_part, legal_keys * i / threads, legal_keys * (i + 1) / threads);
    for (auto& worker : workers) worker.join();
    return scores;
  }

 private:
  const IndexerInputs<Element>&       in_;
  Array<Element**, Kokkos::HostSpace> key_;
  Array<float*, Kokkos::HostSpace>    key_scale_;
};

/// Throws unless a row is right: k distinct legal keys with their scores to within `error`, the best one first and equal ones by index, and
/// no other key beats the last of them by more than rounding can.  exact_ties: keys with equal reference scores have equal scores.
inline void require_right_row(const std::vector<float>& reference, const std::int32_t* indices, const float* scores, std::int64_t top_k,
                              double error, bool exact_ties) {
  const auto require = [](bool right, const char* what) {
    if (!right) throw std::runtime_error(std::string("wrong result: ") + what);
  };
  const auto        keys = static_cast<std::int64_t>(reference.size()), found = std::min(keys, top_k);
  std::vector<char> chosen(reference.size(), false);
  float             last = std::numeric_limits<float>::infinity();
  for (std::int64_t j = 0; j < found; ++j) {
    require(0 <= indices[j] && indices[j] < keys, "a key that is not legal");
    const auto key = static_cast<std::size_t>(indices[j]);
    require(!chosen[key], "a key twice");
    chosen[key] = true;
    require(std::abs(static_cast<double>(scores[j]) - static_cast<double>(reference[key])) <= error, "a score");
    require(j == 0 || scores[j - 1] > scores[j] || (scores[j - 1] == scores[j] && indices[j - 1] < indices[j]), "the order");
    last = std::min(last, reference[key]);
  }
  for (std::int64_t j = found; j < top_k; ++j)
    require(indices[j] == -1 && scores[j] == -std::numeric_limits<float>::infinity(), "the padding");
  for (std::int64_t s = 0; s < keys; ++s) {
    const float score = reference[static_cast<std::size_t>(s)];
    if (chosen[static_cast<std::size_t>(s)]) continue;
    require(static_cast<double>(score) <= static_cast<double>(last) + 2 * error, "a better key was missed");
    require(!exact_ties || score != last || s > indices[found - 1], "a tie");
  }
}

/// Checks the first rows, the last, and some between.
template <class Element>
void require_right_result(const IndexerShape& shape, ScoreOrder order, const IndexerInputs<Element>& in,
                          const Array<std::int32_t**, Kokkos::Cuda>& indices, const Array<float**, Kokkos::Cuda>& scores) {
  const ReferenceScores<Element> reference_scores(in);
  const std::int64_t             S = shape.queries;
  for (const std::int64_t t : std::set<std::int64_t>{0, std::min(S - 1, std::int64_t{100}), S / 3, S - 1}) {
    const auto row         = std::pair(t, t + 1);
    const auto reference   = reference_scores(t, shape.legal_keys(t));
    const auto row_indices = on_host(Kokkos::subview(indices, row, Kokkos::ALL));
    const auto row_scores  = on_host(Kokkos::subview(scores, row, Kokkos::ALL));
    double     magnitude   = 0;
    for (const float score : reference) magnitude = std::max(magnitude, std::abs(static_cast<double>(score)));
    // e4m3's tensor cores add with 14 bits or so, the others with float's
    const double error = magnitude * (in.scaled ? 1e-3 : 1e-5);
    require_right_row(reference, row_indices.data(), row_scores.data(), shape.top_k, error,
                      order == ScoreOrder::equal || order == ScoreOrder::sixteen);
  }
}

#endif

}  // namespace Tributary::Benchmark
