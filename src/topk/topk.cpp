#include "topk/topk.hpp"

#include <limits>

#include "common/check.hpp"

namespace Tributary::Impl {

TopkOutput check_topk_output(std::string_view function, const Tensor<std::int32_t, 3>& indices, bool has_scores,
                             const Tensor<float, 3>& scores, TopkOrder order) {
  const std::int64_t top_k = indices.extents[2];
  require(top_k >= 1, "{}: k, the last extent of indices, is {}, expected 1 or more", function, top_k);
  require(top_k <= std::numeric_limits<std::int32_t>::max() / 4, "{}: k is {}, expected at most 2^29 - 1", function, top_k);
  require(!has_scores || std::equal(indices.extents, indices.extents + 3, scores.extents), "{}: scores is {}, indices is {}", function,
          extents_text(scores), extents_text(indices));
  require_distinct_elements(function, "indices", indices);
  require_distinct_elements(function, "scores", scores);
  require_disjoint(function, "scores", footprint(scores, sizeof(float)), "indices", footprint(indices, sizeof(std::int32_t)));
  return {.indices       = indices.data,
          .scores        = has_scores ? scores.data : nullptr,
          .index_strides = {indices.strides[0], indices.strides[1]},
          .score_strides = {scores.strides[0], scores.strides[1]},
          .top_k         = top_k,
          .order         = order};
}

TopkOutput check_topk(const TopkArguments& arguments, const TopkOptions& options) {
  const auto& [type, values, range, has_range, indices, scores, has_scores] = arguments;
  require(values.extents[0] == indices.extents[0] && values.extents[1] == indices.extents[1], "topk: indices is {}, values is {}",
          extents_text(indices), extents_text(values));
  require(values.extents[2] <= std::numeric_limits<std::int32_t>::max(), "topk: values has {} columns, more than an int32 index can name",
          values.extents[2]);
  if (has_range) require_extents("topk", "range", range, {values.extents[0], values.extents[1], 2});
  require(options.chunk_keys >= 0 && options.chunk_keys <= (1 << 24), "topk: chunk_keys is {}, expected 0 ... 2^24", options.chunk_keys);
  require(options.key_splits >= 0 && options.key_splits <= 65536, "topk: key_splits is {}, expected 0 ... 65536", options.key_splits);
  const auto inputs = {std::pair{"values", footprint(values, element_size(type))},
                       std::pair{"range", footprint(range, sizeof(std::int32_t))}};
  for (const auto& [name, input] : inputs) {
    require_disjoint("topk", "indices", footprint(indices, sizeof(std::int32_t)), name, input);
    require_disjoint("topk", "scores", footprint(scores, sizeof(float)), name, input);
  }
  return check_topk_output("topk", indices, has_scores, scores, options.order);
}

TopkOutput check_topk_merge(const TopkMergeArguments& arguments, const TopkMergeOptions& options) {
  const auto& [lists, indices, scores, has_scores] = arguments;
  require(!lists.empty(), "topk_merge: no list given");
  std::int64_t columns = 0;
  for (std::size_t l = 0; l < lists.size(); ++l) {
    const auto& list = lists[l];
    require(std::equal(list.indices.extents, list.indices.extents + 3, list.scores.extents),
            "topk_merge: list {} has indices {} and scores {}", l, extents_text(list.indices), extents_text(list.scores));
    require(list.indices.extents[0] == indices.extents[0] && list.indices.extents[1] == indices.extents[1],
            "topk_merge: list {} is {}, the output {}", l, extents_text(list.indices), extents_text(indices));
    columns += list.indices.extents[2];
    // A row is read whole before it is written, so the output may be a list itself; overlapping it any other way may not.
    const auto same = [](const auto& a, const auto& b) {
      return a.data == b.data && std::equal(a.extents, a.extents + 3, b.extents) && std::equal(a.strides, a.strides + 2, b.strides);
    };
    const std::string name = "list " + std::to_string(l);
    if (!same(as<const std::int32_t>(indices), list.indices))
      require_disjoint("topk_merge", "indices", footprint(indices, sizeof(std::int32_t)), name,
                       footprint(list.indices, sizeof(std::int32_t)));
    if (!same(as<const float>(scores), list.scores))
      require_disjoint("topk_merge", "scores", footprint(scores, sizeof(float)), name, footprint(list.scores, sizeof(float)));
    require_disjoint("topk_merge", "indices", footprint(indices, sizeof(std::int32_t)), name, footprint(list.scores, sizeof(float)));
    require_disjoint("topk_merge", "scores", footprint(scores, sizeof(float)), name, footprint(list.indices, sizeof(std::int32_t)));
  }
  require(columns <= std::numeric_limits<std::int32_t>::max() / 4,
          "topk_merge: the lists have {} columns together, expected fewer than 2^29", columns);
  return check_topk_output("topk_merge", indices, has_scores, scores, options.order);
}

}  // namespace Tributary::Impl
