#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "topk/topk_reference.hpp"

namespace Tributary::Impl {

namespace {

// Higher score first; equal scores, smaller index first (-0 equals +0); NaN below everything else.
bool ranks_before(const Scored& a, const Scored& b) {
  const bool a_is_nan = std::isnan(a.score), b_is_nan = std::isnan(b.score);
  if (a_is_nan != b_is_nan) return b_is_nan;
  if (!a_is_nan && a.score != b.score) return a.score > b.score;
  return a.index < b.index;
}

float canonical(float score) {
  if (std::isnan(score)) return std::numeric_limits<float>::quiet_NaN();
  return score == 0.0f ? 0.0f : score;
}

}  // namespace

void reference_select(std::vector<Scored> row, const TopkOutput& output, std::int64_t batch, std::int64_t output_row) {
  std::sort(row.begin(), row.end(), ranks_before);
  if (static_cast<std::int64_t>(row.size()) > output.top_k) row.resize(static_cast<std::size_t>(output.top_k));
  if (output.order == TopkOrder::by_index)
    std::sort(row.begin(), row.end(), [](const Scored& a, const Scored& b) { return a.index < b.index; });
  for (std::int64_t i = 0; i < output.top_k; ++i) {
    const bool real = i < static_cast<std::int64_t>(row.size());
    output.indices[batch * output.index_strides[0] + output_row * output.index_strides[1] + i] =
        real ? row[static_cast<std::size_t>(i)].index : -1;
    if (output.scores != nullptr)
      output.scores[batch * output.score_strides[0] + output_row * output.score_strides[1] + i] =
          real ? canonical(row[static_cast<std::size_t>(i)].score) : -std::numeric_limits<float>::infinity();
  }
}

void reference_topk(const TopkArguments& arguments, const TopkOutput& output) {
  const auto& [type, values, range, has_range, indices, scores, has_scores] = arguments;
  for (std::int64_t batch = 0; batch < values.extents[0]; ++batch)
    for (std::int64_t row = 0; row < values.extents[1]; ++row) {
      std::vector<Scored> entries;
      for (std::int64_t j = 0; j < values.extents[2]; ++j) {
        const auto* bounds = has_range ? range.data + batch * range.strides[0] + row * range.strides[1] : nullptr;
        if (bounds == nullptr || (bounds[0] <= j && j < bounds[1]))
          entries.push_back(
              {element(type, values.data, batch * values.strides[0] + row * values.strides[1] + j), static_cast<std::int32_t>(j)});
      }
      reference_select(std::move(entries), output, batch, row);
    }
}

void reference_topk_merge(const TopkMergeArguments& arguments, const TopkOutput& output) {
  for (std::int64_t batch = 0; batch < arguments.indices.extents[0]; ++batch)
    for (std::int64_t row = 0; row < arguments.indices.extents[1]; ++row) {
      std::vector<Scored> entries;
      for (const auto& [indices, scores, offset] : arguments.lists)
        for (std::int64_t j = 0; j < indices.extents[2]; ++j) {
          const std::int64_t index = indices.data[batch * indices.strides[0] + row * indices.strides[1] + j];
          const std::int64_t moved = index + offset;
          if (index >= 0 && moved >= 0 && moved <= std::numeric_limits<std::int32_t>::max())
            entries.push_back({scores.data[batch * scores.strides[0] + row * scores.strides[1] + j], static_cast<std::int32_t>(moved)});
        }
      reference_select(std::move(entries), output, batch, row);
    }
}

}  // namespace Tributary::Impl
