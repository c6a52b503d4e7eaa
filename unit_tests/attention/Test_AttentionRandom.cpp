#include "attention/AttentionFormula.hpp"

// Forward and backward over shapes from the edges and random combinations of every option, against the unfused formula.

namespace TributaryTest {
namespace {

class AttentionRandom : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionRandom, testing::ValuesIn(all_levels()), level_name);

template <class T>
T choice(Random& random, std::initializer_list<T> choices) {
  return random.any_of(std::vector<T>(choices));
}

/// 1 or the extent.
std::int64_t broadcast_extent(Random& random, std::int64_t extent) { return random.coin() ? 1 : extent; }

Array<std::uint8_t, 4> random_keep(Random& random, const AttentionShape& shape) {
  Array<std::uint8_t, 4> keep(
      {broadcast_extent(random, shape.batch), broadcast_extent(random, shape.heads), broadcast_extent(random, shape.queries), shape.keys});
  const bool sparse = random.coin();
  for (auto& value : keep.values) value = static_cast<std::uint8_t>(sparse ? random.integer(0, 7) == 0 : random.integer(0, 3));
  return keep;
}

Array<float, 4> random_additive_mask(Random& random, const AttentionShape& shape) {
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

AttentionShape random_shape(Random& random) {
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

template <class Element, class Out = Element>
void random_options(Level level, std::uint32_t stream, int cases) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    expect_formula<Out>(level, with_random_options<Element>(random, random_shape(random)), random);
  }
}

TEST_P(AttentionRandom, FloatOptions) { random_options<float>(level(), 1, 40); }
TEST_P(AttentionRandom, Bfloat16Options) { random_options<bfloat16_t>(level(), 2, 20); }
TEST_P(AttentionRandom, HalfOptions) { random_options<half_t>(level(), 3, 20); }
TEST_P(AttentionRandom, FloatOutOfBfloat16) { random_options<bfloat16_t, float>(level(), 4, 10); }
TEST_P(AttentionRandom, FloatOutOfHalf) { random_options<half_t, float>(level(), 5, 10); }

#if defined(TRIBUTARY_ENABLE_SM90)
/// Forward at the Hopper level, which takes rows of whole 16 bytes.
template <class Element>
void random_options_on_hopper(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (int i = 0; i < 60 && !testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    auto shape      = random_shape(random);
    shape.head_dim  = choice<std::int64_t>(random, {8, 32, 64, 96, 128, 192, 256});
    shape.value_dim = choice<std::int64_t>(random, {8, 64, 80, 128});
    const auto in   = with_random_options<Element>(random, shape);
    SCOPED_TRACE(text(shape));
    expect_close(AttentionCall<Element>(Level::hopper, in).forward(), exact_formula(in).forward(), naive_formula(in).forward());
  }
}
class AttentionRandomHopper : public HopperTest {};
TEST_F(AttentionRandomHopper, Bfloat16Options) { random_options_on_hopper<bfloat16_t>(20); }
TEST_F(AttentionRandomHopper, HalfOptions) { random_options_on_hopper<half_t>(21); }
#endif

template <class Element>
void head_dimensions(Level level, std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const std::int64_t dims : {1, 3, 32, 33, 64, 96, 128, 192, 256, 512}) {
    expect_formula<Element>(level, AttentionCase<Element>({1, 17, 33, 2, 1, dims, dims}, random), random);
    expect_formula<Element>(
        level, with_random_options<Element>(random, {2, 5, 70, 2, 2, dims, choice<std::int64_t>(random, {1, 40, 128, 512})}), random);
  }
}
TEST_P(AttentionRandom, FloatHeadDimensions) { head_dimensions<float>(level(), 6); }
TEST_P(AttentionRandom, Bfloat16HeadDimensions) { head_dimensions<bfloat16_t>(level(), 7); }
TEST_P(AttentionRandom, HalfHeadDimensions) { head_dimensions<half_t>(level(), 8); }

TEST_P(AttentionRandom, LengthsFromTheEdges) {
  SCOPED_TRACE(seed_text());
  Random random(9);
  for (const std::int64_t queries : {0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65})
    for (const std::int64_t keys : {0, 1, 16, 17, 31, 32, 33, 63, 64, 65, 129}) {
      AttentionCase<float> in({1, queries, keys, 2, 1, 8, 5}, random);
      in.options.causal = random.coin();
      expect_formula<float>(level(), in, random);
    }
}

TEST_P(AttentionRandom, LongRows) {
  SCOPED_TRACE(seed_text());
  Random random(10);
  expect_formula<float>(level(), AttentionCase<float>({1, 3, 2503, 2, 2, 16, 16}, random), random);
  expect_formula<bfloat16_t>(level(), with_random_options<bfloat16_t>(random, {1, 1031, 7, 2, 1, 16, 8}), random);
  AttentionCase<float> window({1, 601, 601, 1, 1, 8, 8}, random);
  window.options.window_left  = 40;
  window.options.window_right = 3;
  expect_formula<float>(level(), window, random);
}

}  // namespace
}  // namespace TributaryTest
