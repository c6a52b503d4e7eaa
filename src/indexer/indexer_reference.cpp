#include <limits>
#include <vector>

#include "indexer/indexer.hpp"
#include "topk/topk_reference.hpp"

namespace Tributary::Impl {

namespace {

// I(t,s) = sum_h w[t,h] * relu(q[t,h] . k[s]); t and s are rows of the tensors.
float score(const IndexerProblem& p, std::int64_t batch, std::int64_t t, std::int64_t s) {
  double sum = 0;
  for (std::int64_t h = 0; h < p.heads; ++h) {
    double dot = 0;
    for (std::int64_t d = 0; d < p.head_dim; ++d)
      dot +=
          static_cast<double>(element(p.type, p.query, batch * p.query_strides[0] + t * p.query_strides[1] + h * p.query_strides[2] + d)) *
          static_cast<double>(element(p.type, p.key, batch * p.key_strides[0] + s * p.key_strides[1] + d));
    if (p.query_scale != nullptr)
      dot *= static_cast<double>(p.query_scale[batch * p.query_scale_strides[0] + t * p.query_scale_strides[1] + h]) *
             static_cast<double>(p.key_scale[batch * p.key_scale_stride + s]);
    const double relu = dot < 0 ? 0 : dot;  // relu(NaN) = NaN
    sum += static_cast<double>(p.weights[batch * p.weight_strides[0] + t * p.weight_strides[1] + h]) * relu;
  }
  return static_cast<float>(sum);
}

// Calls function(batch, row, first_key, legal keys) for every query.
template <class Function>
void for_each_query(const IndexerProblem& p, const Function& function) {
  for (std::int64_t batch = 0; batch < p.batch; ++batch)
    for (std::int64_t row = 0; row < p.queries; ++row) {
      const Segment segment = p.segment(batch, row, row + 1);
      function(batch, row, segment.first_key, p.legal_keys(segment, 0));
    }
}

}  // namespace

void reference_indexer_score(const IndexerProblem& p, const Tensor<float, 3>& scores) {
  for_each_query(p, [&](std::int64_t batch, std::int64_t row, std::int64_t first_key, KeyInterval legal) {
    for (std::int64_t s = 0; s < scores.extents[2]; ++s)
      scores.data[batch * scores.strides[0] + row * scores.strides[1] + s] =
          legal.begin <= s && s < legal.end ? score(p, batch, row, first_key + s) : -std::numeric_limits<float>::infinity();
  });
}

void reference_indexer_topk(const IndexerProblem& p, const TopkOutput& output) {
  for_each_query(p, [&](std::int64_t batch, std::int64_t row, std::int64_t first_key, KeyInterval legal) {
    std::vector<Scored> entries;
    for (std::int64_t s = legal.begin; s < legal.end; ++s)
      entries.push_back({score(p, batch, row, first_key + s), static_cast<std::int32_t>(s)});
    reference_select(std::move(entries), output, batch, row);
  });
}

}  // namespace Tributary::Impl
