#include <algorithm>
#include <cmath>

#include "CapturedGraph.hpp"
#include "KokkosEvents.hpp"
#include "attention/AttentionFormula.hpp"
#include "attention/RandomOptions.hpp"

// attention_forward of FP8 e4m3 with a scale for each 128 rows of a head.  The formula takes the numbers that the stored ones stand for.

namespace TributaryTest {
namespace {

using E4m3Case = AttentionCase<float8_e4m3_t>;

/// Scales that differ from block to block, as amax / 448 of normal numbers would.
Array<float, 3> random_scales(Random& random, const Array<float8_e4m3_t, 4>& rows) {
  Array<float, 3> scales({rows.extents[0], rows.extents[2], (rows.extents[1] + 127) / 128});
  for (float& scale : scales.values) scale = 0.004f + 0.02f * std::abs(random.normal());
  return scales;
}

/// Normal numbers, quantised with these scales.
void fill(Random& random, const Array<float, 3>& scales, Array<float8_e4m3_t, 4>& rows) {
  const auto [batch, count, heads, dim] = rows.extents;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t d = 0; d < dim; ++d) rows(b, r, h, d) = float8_e4m3_t(random.normal() / scales(b, h, r / 128));
}

E4m3Case with_scales(Random& random, E4m3Case in) {
  in.query_scale = random_scales(random, in.query);
  in.key_scale   = random_scales(random, in.key);
  in.value_scale = random_scales(random, in.value);
  fill(random, *in.query_scale, in.query);
  fill(random, *in.key_scale, in.key);
  fill(random, *in.value_scale, in.value);
  return in;
}
E4m3Case random_case(Random& random, const AttentionShape& shape) { return with_scales(random, E4m3Case(shape)); }

/// Every option but rotary embedding.
E4m3Case random_options_case(Random& random, const AttentionShape& shape) {
  auto in           = with_scales(random, with_random_options<float8_e4m3_t>(random, shape));
  in.options.rotary = {};
  in.cosine.reset();
  in.sine.reset();
  in.query_positions.reset();
  in.key_positions.reset();
  return in;
}

FormulaResult<double> exact_result(const E4m3Case& in) { return Formula<double, double, double>(in, FormulaInputs<double>(in)).forward(); }
/// Sums in float; weights in float as the portable level has them, or in e4m3.
template <class Weight>
FormulaResult<float> naive_result(const E4m3Case& in) {
  return Formula<float, float, float, Weight>(in, FormulaInputs<float>(in)).forward();
}

class AttentionE4m3 : public LevelTest {
 public:
  static void expect_right(const E4m3Case& in) {
    SCOPED_TRACE(text(in.shape()));
    expect_close(AttentionCall<float8_e4m3_t, float>(level(), in).forward(), exact_result(in), naive_result<float>(in));
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionE4m3, testing::ValuesIn(all_levels()), level_name);

TEST_P(AttentionE4m3, RandomOptions) {
  SCOPED_TRACE(seed_text());
  Random random(200);
  for (int i = 0; i < 30 && !HasFailure(); ++i) expect_right(random_options_case(random, random_shape(random)));
}

TEST_P(AttentionE4m3, RowsAcrossBlocksOfScales) {
  SCOPED_TRACE(seed_text());
  Random random(201);
  for (const auto& [queries, keys] : {std::pair{127, 129}, {128, 128}, {129, 127}, {300, 400}, {1, 513}})
    for (const bool causal : {false, true}) {
      auto in           = random_case(random, {2, queries, keys, 4, 2, 32, 24});
      in.options.causal = causal;
      expect_right(in);
    }
}

TEST_P(AttentionE4m3, EachBlockHasItsOwnScale) {
  // A query of zeros weighs all keys alike; every stored value is 1, so an output is the mean of the values' scales.
  E4m3Case in({1, 1, 300, 2, 2, 4, 3});
  for (auto* const rows : {&in.query, &in.key, &in.value})
    for (auto& value : rows->values) value = float8_e4m3_t(rows == &in.query ? 0.0f : 1.0f);
  in.query_scale         = Array<float, 3>({1, 2, 1}, 1.0f);
  in.key_scale           = Array<float, 3>({1, 2, 3}, 1.0f);
  in.value_scale         = Array<float, 3>({1, 2, 3});
  in.value_scale->values = {1, 2, 4, 8, 16, 32};
  const auto result      = AttentionCall<float8_e4m3_t, float>(level(), in).forward();
  for (std::int64_t d = 0; d < 3; ++d) {
    EXPECT_NEAR(result.out(0, 0, 0, d), (128 * 1 + 128 * 2 + 44 * 4) / 300.0, 1e-5);
    EXPECT_NEAR(result.out(0, 0, 1, d), (128 * 8 + 128 * 16 + 44 * 32) / 300.0, 1e-4);
  }
}

TEST_P(AttentionE4m3, PackedSequencesTakeTheScalesOfTheirRows) {
  SCOPED_TRACE(seed_text());
  Random random(202);
  auto   in         = random_case(random, {1, 300, 400, 4, 2, 16, 16});
  in.cu_seqlens_q   = {0, 100, 100, 250, 300};
  in.cu_seqlens_k   = {0, 50, 190, 200, 400};
  in.options.causal = true;
  expect_right(in);
}

TEST_P(AttentionE4m3, GoesOnFromAState) {
  SCOPED_TRACE(seed_text());
  Random     random(203);
  const auto in   = random_case(random, {1, 40, 256, 2, 1, 16, 16});
  const auto all  = AttentionCall<float8_e4m3_t, float>(level(), in).forward();
  const auto part = [&](std::int64_t block) {
    E4m3Case half({1, 40, 128, 2, 1, 16, 16});
    half.query       = in.query;
    half.query_scale = in.query_scale;
    half.key_scale = half.value_scale = Array<float, 3>({1, 1, 1});
    half.key_scale->values[0]         = (*in.key_scale)(0, 0, block);
    half.value_scale->values[0]       = (*in.value_scale)(0, 0, block);
    for (std::int64_t j = 0; j < 128; ++j)
      for (std::int64_t d = 0; d < 16; ++d) {
        half.key(0, j, 0, d)   = in.key(0, 128 * block + j, 0, d);
        half.value(0, j, 0, d) = in.value(0, 128 * block + j, 0, d);
      }
    return half;
  };
  const auto first    = AttentionCall<float8_e4m3_t, float>(level(), part(0)).forward();
  auto       second   = part(1);
  second.previous_out = first.out;
  second.previous_lse = first.lse;
  const auto both     = AttentionCall<float8_e4m3_t, float>(level(), second).forward();
  EXPECT_LE(largest_difference(both.out, all.out), 2e-6);
  EXPECT_LE(largest_difference(both.lse, all.lse), 2e-6);
}

/// Outputs of 2 bytes are those in float, rounded.
template <class Out>
void expect_rounded(const E4m3Case& in, Level level, const AttentionResult<float>& floats) {
  const auto given = AttentionCall<float8_e4m3_t, Out>(level, in).forward();
  for (std::size_t n = 0; n < floats.out.values.size(); ++n) ASSERT_EQ(given.out.values[n].bits, Out(floats.out.values[n]).bits);
  EXPECT_TRUE(same_bits(given.lse, floats.lse));
}
TEST_P(AttentionE4m3, OutputsOfEveryType) {
  SCOPED_TRACE(seed_text());
  Random     random(204);
  const auto in     = random_case(random, {2, 33, 140, 2, 1, 24, 17});
  const auto floats = AttentionCall<float8_e4m3_t, float>(level(), in).forward();
  expect_rounded<bfloat16_t>(in, level(), floats);
  expect_rounded<half_t>(in, level(), floats);
}

TEST_P(AttentionE4m3, RefusesWrongScales) {
  Random     random(205);
  const auto in      = random_case(random, {2, 130, 260, 4, 2, 8, 8});
  const auto refused = [&](const E4m3Case& wrong, std::string_view part) {
    expect_refusal([&] { AttentionCall<float8_e4m3_t, float>(level(), wrong).forward(); }, {"attention_forward: ", part});
  };
  auto wrong = in;
  wrong.query_scale.reset();
  refused(wrong, "float8_e4m3 inputs need query_scale");
  wrong = in;
  wrong.value_scale.reset();
  refused(wrong, "float8_e4m3 inputs need value_scale");
  wrong           = in;
  wrong.key_scale = in.query_scale;
  refused(wrong, "key_scale is [2, 4, 2], expected [2, 2, 3]");
  wrong                = in;
  wrong.options.rotary = {.dims = 4};
  refused(wrong, "rotary embedding does not go with float8_e4m3");
  AttentionCase<bfloat16_t> other({2, 130, 260, 4, 2, 8, 8}, random);
  other.key_scale = in.key_scale;
  expect_refusal([&] { AttentionCall<bfloat16_t>(level(), other).forward(); },
                 {"attention_forward: key_scale goes with float8_e4m3 inputs only"});
}

#if defined(TRIBUTARY_ENABLE_SM90)

// Tensor cores add products of e4m3 with some 14 bits: a score is off by up to 2^-11 of the sum of its products' magnitudes, so are LSE and
// the weights, and an output relative to the values around it.  Besides, weights are rounded to e4m3, which the unfused formula does, too,
// but its largest weight is a power of 2, while a row's here may lie up to 2^0.75 above one: 2^-6 for where few keys have weight.
class AttentionE4m3Hopper : public HopperTest {
 public:
  static constexpr Level level = Level::hopper;

  static double product_error(const E4m3Case& in) {
    const FormulaInputs<double> n(in);
    const auto [batch, queries, keys, heads, key_heads, head_dim, value_dim] = in.shape();
    double most                                                              = 0;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t i = 0; i < queries; ++i)
          for (std::int64_t j = 0; j < keys; ++j) {
            double sum = 0;
            for (std::int64_t d = 0; d < head_dim; ++d) sum += std::abs(n.query(b, i, h, d) * n.key(b, j, h / (heads / key_heads), d));
            most = std::max(most, sum);
          }
    return 0x1p-11 * most * std::abs(static_cast<double>(in.options.scale.value_or(1 / std::sqrt(static_cast<float>(head_dim)))));
  }
  static void expect_right(const E4m3Case& in) {
    SCOPED_TRACE(text(in.shape()) + (in.options.causal ? ", causal" : ""));
    const auto   given = AttentionCall<float8_e4m3_t, float>(level, in).forward();
    const auto   exact = exact_result(in);
    const auto   naive = naive_result<float8_e4m3_t>(in);
    const double off   = product_error(in);
    const double grown = in.options.dropout.probability < 1 ? 1 / (1 - in.options.dropout.probability) : 1;
    expect_close("out", given.out, exact.out, naive.out, 0x1p-6 + off * grown);
    expect_close("lse", given.lse, exact.lse, naive.lse, 1e-6 + off);
  }
};

TEST_F(AttentionE4m3Hopper, HeadDimensionsAndLengths) {
  SCOPED_TRACE(seed_text());
  Random                          random(210);
  const std::vector<std::int64_t> edges = {1, 63, 64, 65, 127, 128, 129, 191, 255, 256, 257, 400};
  for (const auto& [head_dim, value_dim] : {std::pair{128, 128}, {128, 128}, {64, 64}, {16, 128}, {96, 80}, {112, 32}})
    for (int i = 0; i < 6 && !HasFailure(); ++i) {
      auto in           = random_case(random, {random.integer(1, 2), random.any_of(edges), random.any_of(edges), 4,
                                               choice<std::int64_t>(random, {1, 2, 4}), head_dim, value_dim});
      in.options.causal = random.coin();
      if (random.coin()) in.options.window_left = random.integer(0, 200);
      if (random.coin()) in.sink = Array<float, 1>({4}, 0.5f);
      expect_right(in);
    }
}

TEST_F(AttentionE4m3Hopper, RandomOptions) {
  SCOPED_TRACE(seed_text());
  Random random(211);
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    auto shape      = random_shape(random);
    shape.head_dim  = choice<std::int64_t>(random, {16, 32, 64, 80, 96, 128});
    shape.value_dim = choice<std::int64_t>(random, {16, 32, 64, 80, 96, 128});
    auto in         = random_options_case(random, shape);
    if (random.coin()) {
      in.options.query_offset = random.integer(-50, 200);
      in.options.key_offset   = random.integer(0, 100);
    }
    expect_right(in);
  }
}

/// Sequences of any length, that begin and end anywhere in the blocks of scales; masks' columns are numbers in a sequence.
TEST_F(AttentionE4m3Hopper, PackedSequences) {
  SCOPED_TRACE(seed_text());
  Random random(218);
  for (int i = 0; i < 30 && !HasFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    const std::int64_t queries = choice<std::int64_t>(random, {1, 127, 128, 300, 400}), keys = choice<std::int64_t>(random, {1, 129, 500});
    const std::int64_t dim = choice<std::int64_t>(random, {32, 64, 128});
    auto               in  = random_case(random, {1, queries, keys, 4, choice<std::int64_t>(random, {1, 2, 4}), dim, dim});
    const auto         cut = [&](std::int64_t rows) {
      std::vector<std::int32_t> offsets;
      for (int s = 0; s < 6; ++s) offsets.push_back(random.integer<std::int32_t>(0, static_cast<std::int32_t>(rows)));
      std::sort(offsets.begin(), offsets.end());
      return offsets;
    };
    in.cu_seqlens_q   = cut(queries);
    in.cu_seqlens_k   = cut(keys);
    in.options.causal = random.coin();
    if (random.coin()) in.options.window_left = random.integer(0, 200);
    if (random.integer(0, 2) == 0) {
      in.alibi_slopes  = Array<float, 2>({5, 4}, 0.02f);
      in.additive_mask = Array<float, 4>({1, 4, queries, 200});
      in.keep          = Array<std::uint8_t, 4>({1, 1, 1, 300});
      random.fill_with_normals(*in.additive_mask);
      for (auto& keep : in.keep->values) keep = random.integer<std::uint8_t>(0, 3);
    }
    if (random.integer(0, 2) == 0) in.options.dropout = {.probability = 0.5, .seed = 9};
    expect_right(in);
  }
}

TEST_F(AttentionE4m3Hopper, APackedSequenceDoesNotSeeItsNeighbours) {
  SCOPED_TRACE(seed_text());
  Random random(219);
  for (const bool causal : {false, true}) {
    auto in           = random_case(random, {1, 700, 900, 4, 2, 128, 128});
    in.options.causal = causal;
    in.cu_seqlens_q   = {0, 130, 130, 300, 301, 700};
    in.cu_seqlens_k   = {0, 200, 333, 333, 500, 900};
    expect_right(in);
    const auto clean = AttentionCall<float8_e4m3_t, bfloat16_t>(level, in).forward();
    for (std::int64_t j = 200; j < 333; ++j)  // the sequence without queries
      for (std::int64_t h = 0; h < 2; ++h)
        for (std::int64_t d = 0; d < 128; ++d) in.key(0, j, h, d) = in.value(0, j, h, d) = float8_e4m3_t(NAN);
    EXPECT_EQ(largest_difference(AttentionCall<float8_e4m3_t, bfloat16_t>(level, in).forward().out, clean.out), 0);
  }
}

TEST_F(AttentionE4m3Hopper, EqualWeightsGiveMeans) {
  // Weights of 2^8 and whole values up to 7, whose sums over a tile have 14 bits at most: exact, so no value may come from another place.
  Random   random(212);
  E4m3Case in({2, 200, 700, 4, 2, 128, 128});
  for (auto& value : in.value.values) value = float8_e4m3_t(random.integer<float>(-7, 7));
  for (auto& value : in.key.values) value = float8_e4m3_t(random.integer<float>(-7, 7));
  in.query_scale = random_scales(random, in.query);
  in.key_scale   = random_scales(random, in.key);
  in.value_scale = random_scales(random, in.value);
  for (float& scale : in.value_scale->values) scale = std::exp2(random.integer<float>(-2, 2));
  for (const bool causal : {false, true}) {
    in.options.causal = causal;
    const auto given  = AttentionCall<float8_e4m3_t, float>(level, in).forward();
    EXPECT_LE(largest_difference(given.out, exact_result(in).out), 2e-5) << (causal ? "causal" : "full");
  }
}

TEST_F(AttentionE4m3Hopper, ManyTilesAgreeWithThePortableLevel) {
  // Weights are rounded to e4m3, by up to 2^-4 each and independently of each other; the mean of 1700 values is off by 2^-4 / sqrt(1700) of
  // their spread, some 0.002, five times that at the most.
  SCOPED_TRACE(seed_text());
  Random random(213);
  for (const bool causal : {false, true}) {
    auto in             = random_case(random, {2, 1500, 1700, 6, 3, 128, 128});
    in.options.causal   = causal;
    const auto given    = AttentionCall<float8_e4m3_t, float>(level, in).forward();
    const auto expected = AttentionCall<float8_e4m3_t, float>(Level::portable, in).forward();
    EXPECT_LE(largest_difference(given.out, expected.out), 0.02) << (causal ? ", causal" : "");
    EXPECT_LE(largest_difference(given.lse, expected.lse), 0.01) << (causal ? ", causal" : "");
  }
}

TEST_F(AttentionE4m3Hopper, HiddenKeysMayHoldAnything) {
  Random random(214);
  auto   in       = random_case(random, {2, 150, 300, 2, 1, 128, 128});
  in.key_keep     = Array<std::uint8_t, 2>({2, 300}, std::uint8_t{1});
  const auto hide = [&](bool with_nan) {
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t j = b; j < 300; j += 3) {
        (*in.key_keep)(b, j) = 0;
        for (std::int64_t d = 0; d < 128 && with_nan; ++d) in.key(b, j, 0, d) = in.value(b, j, 0, d) = float8_e4m3_t(NAN);
      }
    return AttentionCall<float8_e4m3_t, bfloat16_t>(level, in).forward();
  };
  const auto clean = hide(false), given = hide(true);
  EXPECT_EQ(largest_difference(given.out, clean.out), 0);
  EXPECT_EQ(largest_difference(given.lse, clean.lse), 0);
}

TEST_F(AttentionE4m3Hopper, EveryRunGivesTheSameBits) {
  Random random(215);
  auto   in         = random_case(random, {2, 1000, 1000, 8, 2, 128, 128});
  in.options.causal = true;
  const AttentionCall<float8_e4m3_t, bfloat16_t> call(level, in);
  const auto                                     first = call.forward();
  for (int run = 0; run < 10; ++run) {
    const auto again = call.forward();
    ASSERT_EQ(largest_difference(again.out, first.out), 0);
    ASSERT_EQ(largest_difference(again.lse, first.lse), 0);
  }
}

TEST_F(AttentionE4m3Hopper, ACapturedCallStaysOnItsInstance) {
  Random                                     random(216);
  const Space                                exec = another_instance();
  const auto                                 in   = random_case(random, {1, 200, 300, 2, 2, 128, 128});
  const AttentionCall<float8_e4m3_t, half_t> call(level, in);
  const View<half_t, 4>                      out("out", 1, 200, 2, 128);
  const View<float, 3>                       lse("lse", 1, 2, 200);
  const View<std::byte, 1>                   workspace(
                        "workspace", Tributary::attention_forward_workspace_size(exec, call.query, call.key, call.value, out, lse, call.options));
  const auto run = [&] { Tributary::attention_forward(exec, call.query, call.key, call.value, out, lse, call.options, workspace); };
  expect_stays_on_instance(exec, run);
  exec.fence();
  const AttentionResult<half_t> direct{from_space<4>(out), from_space<3>(lse)};
  Kokkos::deep_copy(out, half_t(0.0f));
  const CapturedGraph graph(exec, run);
  graph.launch();
  EXPECT_EQ(largest_difference(from_space<4>(out), direct.out), 0);
}

TEST_F(AttentionE4m3Hopper, RefusesWhatItDoesNotTake) {
  Random     random(217);
  const auto wide = random_case(random, {1, 3, 3, 1, 1, 144, 16}), narrow = random_case(random, {1, 3, 3, 2, 1, 8, 16});
  const auto refused = [&](const E4m3Case& in, std::string_view part) {
    expect_refusal([&] { AttentionCall<float8_e4m3_t, float>(level, in).forward(); }, {"attention_forward", "Hopper", part});
  };
  refused(wide, "up to 128 of float8_e4m3");
  refused(narrow, "16 bytes");
}

#endif

}  // namespace
}  // namespace TributaryTest
