#pragma once
#include <utility>

#include "AttentionCase.hpp"

// Shapes from the edges and random combinations of every option.

namespace TributaryTest {

template <class T>
T choice(Random& random, std::initializer_list<T> choices) {
  return random.any_of(std::vector<T>(choices));
}

/// 1 or the extent.
inline std::int64_t broadcast_extent(Random& random, std::int64_t extent) { return random.coin() ? 1 : extent; }

inline Array<std::uint8_t, 4> random_keep(Random& random, const AttentionShape& shape) {
  Array<std::uint8_t, 4> keep(
      {broadcast_extent(random, shape.batch), broadcast_extent(random, shape.heads), broadcast_extent(random, shape.queries), shape.keys});
  const bool sparse = random.coin();
  for (auto& value : keep.values) value = static_cast<std::uint8_t>(sparse ? random.integer(0, 7) == 0 : random.integer(0, 3));
  return keep;
}

inline Array<float, 4> random_additive_mask(Random& random, const AttentionShape& shape) {
  Array<float, 4> mask(
      {broadcast_extent(random, shape.batch), broadcast_extent(random, shape.heads), broadcast_extent(random, shape.queries), shape.keys});
  for (auto& value : mask.values) value = random.integer(0, 9) == 0 ? -infinite : random.normal();
  return mask;
}

template <class Element>
void choose_rotary(Random& random, AttentionCase<Element>& in) {
  const auto shape  = in.shape();
  auto&      rotary = in.options.rotary;
  rotary.dims       = 2 * random.integer<std::int32_t>(1, shape.head_dim / 2);
  rotary.style      = random.coin() ? RotaryStyle::half : RotaryStyle::interleaved;
  rotary.last       = random.coin();
  rotary.base       = choice(random, {10000.0, 500.0});
  if (random.coin()) {
    in.query_positions = Array<std::int32_t, 2>({broadcast_extent(random, shape.batch), shape.queries});
    in.key_positions   = Array<std::int32_t, 2>({broadcast_extent(random, shape.batch), shape.keys});
    for (auto& position : in.query_positions->values) position = random.integer<std::int32_t>(-3, 200);
    for (auto& position : in.key_positions->values) position = random.integer<std::int32_t>(-3, 200);
  }
  if (random.coin()) {
    in.cosine = Array<float, 2>({random.integer(1, 200), rotary.dims / 2});
    in.sine   = Array<float, 2>(in.cosine->extents);
    random.fill_with_normals(*in.cosine);
    random.fill_with_normals(*in.sine);
  }
}

/// Every option with a chance of its own.
template <class Element>
AttentionCase<Element> with_random_options(Random& random, const AttentionShape& shape) {
  AttentionCase<Element> in(shape, random);
  const auto             chance = [&] { return random.integer(0, 2) == 0; };
  AttentionOptions&      o      = in.options;
  if (chance()) o.scale = 0.05f * random.normal();
  if (chance()) o.softcap = 0.5f + std::abs(random.normal());
  o.causal = chance();
  if (chance()) o.window_left = random.integer(0, shape.keys);
  if (chance()) o.window_right = random.integer(0, shape.keys);
  if (chance()) {
    in.key_keep = Array<std::uint8_t, 2>({shape.batch, shape.keys});
    for (auto& keep : in.key_keep->values) keep = random.integer<std::uint8_t>(0, 2);
  }
  if (chance()) in.keep = random_keep(random, shape);
  if (chance()) in.additive_mask = random_additive_mask(random, shape);
  if (chance()) {
    in.alibi_slopes = Array<float, 2>({broadcast_extent(random, shape.batch), shape.heads});
    for (auto& slope : in.alibi_slopes->values) slope = 0.1f * random.normal();
  }
  if (chance()) {
    in.relative_bias              = Array<float, 2>({choice<std::int64_t>(random, {2, 4, 6, 32}), shape.heads});
    o.relative_bias.bidirectional = random.coin();
    o.relative_bias.max_distance  = choice(random, {20, 128});
    random.fill_with_normals(*in.relative_bias);
  }
  if (chance()) {
    in.sink = Array<float, 1>({shape.heads});
    random.fill_with_normals(*in.sink);
  }
  if (chance() && shape.head_dim >= 2) choose_rotary(random, in);
  if (chance())
    o.dropout = {.probability = choice(random, {0.1, 0.5, 0.9}),
                 .seed        = 0x123456789abcdefull + random.integer<std::uint64_t>(0, 1 << 20),
                 .offset      = 7};
  return in;
}

/// Random options, and a place that is not the default one: keys from `key_offset` on, queries somewhere before, among or behind them.
template <class Element>
AttentionCase<Element> with_random_offsets(Random& random, const AttentionShape& shape) {
  auto in                 = with_random_options<Element>(random, shape);
  in.options.key_offset   = choice<std::int64_t>(random, {0, 3, 1000, (std::int64_t{1} << 31) - shape.keys - 20 - shape.queries});
  in.options.query_offset = in.options.key_offset + random.integer(-20, shape.keys + 20);
  return in;
}

inline AttentionShape random_shape(Random& random) {
  const auto length = [&] {
    return choice<std::int64_t>(random, {0, 1, 2, 7, 13, 15, 16, 17, 31, 32, 33, 61, 63, 64, 65, 97, 127, 128, 129, 257});
  };
  const auto dims               = [&] { return choice<std::int64_t>(random, {1, 3, 8, 32, 33, 64}); };
  const auto [heads, key_heads] = choice<std::pair<int, int>>(random, {{1, 1}, {3, 3}, {4, 2}, {6, 2}, {5, 1}});
  return {.batch     = random.integer(1, 3),
          .queries   = length(),
          .keys      = length(),
          .heads     = heads,
          .key_heads = key_heads,
          .head_dim  = dims(),
          .value_dim = dims()};
}

/// Rows of whole 16 bytes, which the level wants.
inline AttentionShape aligned_shape(Random& random, std::initializer_list<std::int64_t> dims) {
  auto shape      = random_shape(random);
  shape.head_dim  = choice<std::int64_t>(random, dims);
  shape.value_dim = choice<std::int64_t>(random, dims);
  return shape;
}

}  // namespace TributaryTest
