#pragma once
#include <algorithm>
#include <limits>
#include <span>
#include <string>
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

inline std::string text(const std::vector<Stretch>& stretches) {
  std::string all = "stretches";
  for (const Stretch& stretch : stretches) all += " " + std::to_string(stretch.begin) + "-" + std::to_string(stretch.end);
  return all;
}

/// Stretches one behind another, from 0 on, that end here.
inline std::vector<Stretch> stretches_up_to(const std::vector<std::int64_t>& ends) {
  std::vector<Stretch> stretches;
  for (const std::int64_t end : ends) stretches.push_back({stretches.empty() ? 0 : stretches.back().end, end});
  return stretches;
}

/// 2 to 4 stretches of `size` rows, cut at multiples of `step`, some of them empty where there are few.
inline std::vector<Stretch> random_stretches(Random& random, std::int64_t size, std::int64_t step = 1) {
  std::vector<std::int64_t> ends;
  for (std::int64_t n = random.integer(1, 3); n > 0; --n) ends.push_back(random.integer(0, size / step) * step);
  std::sort(ends.begin(), ends.end());
  ends.push_back(size);
  return stretches_up_to(ends);
}

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

/// These queries and keys of a case, which says where they lie if the case does.  Of e4m3 they begin with a block of scales.
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
  const auto scales_of = [](const Stretch& rows) { return Stretch{rows.begin / 128, (rows.end + 127) / 128}; };
  cut(part.query_scale, 2, scales_of(queries));
  cut(part.key_scale, 2, scales_of(keys));
  cut(part.value_scale, 2, scales_of(keys));
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

/// The stretches of keys one after another, each call going on from the one before; the sink with the last.  What a row's output holds
/// before it has seen a key is not looked at: NaN.
template <class Out = float, class Element>
AttentionResult<Out> streamed(Level level, const AttentionCase<Element>& in, const std::vector<Stretch>& keys) {
  const Stretch         all{0, in.shape().queries};
  std::optional<Result> seen;
  for (std::size_t n = 0;; ++n) {
    auto part = stretch_of(in, all, keys[n]);
    if (n + 1 < keys.size()) part.sink.reset();
    if (seen) {
      for (std::int64_t b = 0; b < seen->lse.extents[0]; ++b)
        for (std::int64_t h = 0; h < seen->lse.extents[1]; ++h)
          for (std::int64_t i = 0; i < seen->lse.extents[2]; ++i)
            for (std::int64_t d = 0; d < seen->out.extents[3] && seen->lse(b, h, i) == -infinite; ++d)
              seen->out(b, i, h, d) = std::numeric_limits<float>::quiet_NaN();
      part.previous_out = seen->out;
      part.previous_lse = seen->lse;
    }
    if (n + 1 == keys.size()) return AttentionCall<Element, Out>(level, part).forward();
    seen = AttentionCall<Element, float>(level, part).forward();
  }
}

/// The stretches of keys alone, in any order, then merged; the sink in the merge, which has no Hopper level.
template <class Element>
Result merged(Level level, const AttentionCase<Element>& in, std::vector<Stretch> keys) {
  std::vector<Result> states;
  std::reverse(keys.begin(), keys.end());
  for (const Stretch& stretch : keys) {
    auto part = stretch_of(in, {0, in.shape().queries}, stretch);
    part.sink.reset();
    states.push_back(AttentionCall<Element, float>(level, part).forward());
  }
  return merge(level == Level::hopper ? Level::portable : level, states, in.sink);
}

/// Each stretch of queries gives the bits that the whole gives its rows.
template <class Element>
void expect_the_wholes_rows(Level level, const AttentionCase<Element>& in, const std::vector<Stretch>& queries) {
  const auto whole = AttentionCall<Element, float>(level, in).forward();
  for (const Stretch& rows : queries) {
    const auto part = AttentionCall<Element, float>(level, stretch_of(in, rows, {0, in.shape().keys})).forward();
    EXPECT_TRUE(same_bits(part.out, part_of(whole.out, 1, rows)));
    EXPECT_TRUE(same_bits(part.lse, part_of(whole.lse, 2, rows)));
  }
}

/// Masks by which some rows see no key at all, or keys of one chunk only: the first one, the last one.
template <class Element>
AttentionCase<Element> masked_case(Random& random, const AttentionShape& shape) {
  AttentionCase<Element> in(shape, random);
  in.sink          = Array<float, 1>({shape.heads});
  in.keep          = Array<std::uint8_t, 4>({shape.batch, 1, shape.queries, shape.keys});
  in.additive_mask = Array<float, 4>({1, shape.heads, 1, shape.keys});
  random.fill_with_normals(*in.sink);
  random.fill_with_normals(*in.additive_mask);
  for (auto& keep : in.keep->values) keep = random.coin();
  for (std::int64_t j = 0; j < shape.keys; ++j) {
    (*in.keep)(0, 0, 3, j)               = 0;
    (*in.keep)(shape.batch - 1, 0, 5, j) = j >= shape.keys - 10;
    (*in.keep)(shape.batch - 1, 0, 6, j) = j < 5;
  }
  return in;
}

/// Its chunks; one is empty.
inline std::vector<Stretch> chunks_of_masked(const AttentionShape& shape) {
  return stretches_up_to({7, 40, 40, shape.keys - 46, shape.keys});
}

}  // namespace TributaryTest
