#pragma once
#include <span>
#include <utility>

#include "AttentionCase.hpp"

// Parts of a case, as a stream or a ring of ranks holds them, and the merging of their results.

namespace TributaryTest {

using Tributary::AttentionMergeOptions;
using Result = AttentionResult<float>;

/// begin ... end - 1
struct Stretch {
  std::int64_t begin, end;

  std::int64_t size() const { return end - begin; }
};

/// The part of an array that is in a stretch of one of its dimensions.
template <class T, int Rank>
Array<T, Rank> part_of(const Array<T, Rank>& from, std::size_t dimension, const Stretch& stretch) {
  auto extents       = from.extents;
  extents[dimension] = stretch.size();
  std::size_t inner  = 1;  // elements of one index of the dimension
  for (std::size_t d = dimension + 1; d < Rank; ++d) inner *= static_cast<std::size_t>(extents[d]);
  const auto     size = static_cast<std::size_t>(stretch.size()), whole = static_cast<std::size_t>(from.extents[dimension]);
  Array<T, Rank> to(extents);
  for (std::size_t n = 0; n < to.values.size(); ++n) {
    const std::size_t index = n / inner % size + static_cast<std::size_t>(stretch.begin);
    to.values[n]            = from.values[(n / inner / size * whole + index) * inner + n % inner];
  }
  return to;
}

/// These queries and keys of a case, which says where they lie if the case does.
template <class Element>
AttentionCase<Element> stretch_of(const AttentionCase<Element>& in, const Stretch& queries, const Stretch& keys) {
  AttentionCase<Element> part = in;
  const auto             cut  = [](auto& array, std::size_t dimension, const Stretch& stretch) {
    if (array) array = part_of(*array, dimension, stretch);
  };
  part.query = part_of(in.query, 1, queries);
  part.key   = part_of(in.key, 1, keys);
  part.value = part_of(in.value, 1, keys);
  cut(part.key_keep, 1, keys);
  cut(part.keep, 3, keys);
  cut(part.additive_mask, 3, keys);
  if (in.keep && in.keep->extents[2] > 1) cut(part.keep, 2, queries);  // else broadcast
  if (in.additive_mask && in.additive_mask->extents[2] > 1) cut(part.additive_mask, 2, queries);
  cut(part.query_positions, 1, queries);
  cut(part.key_positions, 1, keys);
  if (in.options.query_offset) {
    part.options.query_offset = *in.options.query_offset + queries.begin;
    part.options.key_offset   = in.options.key_offset + keys.begin;
  }
  return part;
}

/// attention_merge of host arrays.
inline Result merge(Level level, const std::vector<Result>& states, const std::optional<Array<float, 1>>& sink = {}) {
  std::vector<View<float, 4>> outs;
  std::vector<View<float, 3>> lses;
  std::vector<AttentionState> inputs;
  for (const Result& state : states)
    inputs.push_back({.out = outs.emplace_back(in_space(state.out)), .lse = lses.emplace_back(in_space(state.lse))});
  AttentionMergeOptions options{.level = level};
  const auto            sinks = in_space(sink.value_or(Array<float, 1>{}));
  if (sink) options.sink = sinks;
  const auto out = in_space(Array<float, 4>(states[0].out.extents, 7.0f));
  const auto lse = in_space(Array<float, 3>(states[0].lse.extents, 7.0f));
  Tributary::attention_merge(Space{}, std::span<const AttentionState>(inputs), out, lse, options);
  return {from_space<4>(out), from_space<3>(lse)};
}

}  // namespace TributaryTest
