#include <algorithm>
#include <cmath>

#include "CapturedGraph.hpp"
#include "KokkosEvents.hpp"
#include "attention/E4m3Case.hpp"
#include "attention/Stretches.hpp"

// attention_forward of FP8 e4m3 with a scale for each 128 rows of a head.

namespace TributaryTest {
namespace {

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
  const auto both = streamed(level(), in, stretches_up_to({128, 256}));
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

/// The greatest weight of each stretch is rounded on its own, and each one's LSE is off on its own: an output has a share of two.
TEST_F(AttentionE4m3Hopper, GoesOnFromAState) {
  SCOPED_TRACE(seed_text());
  Random random(220);
  for (const std::int64_t dim : {64, 128})
    for (const bool placed : {false, true}) {
      auto in = random_case(random, {2, 150, 400, 4, 2, dim, dim});
      in.sink = Array<float, 1>({4}, 0.5f);
      if (placed) {  // the first rows see no key at all, the last ones none of the first stretch
        in.options.causal       = true;
        in.options.window_left  = 40;
        in.options.query_offset = 140;
        in.options.key_offset   = 147;
      } else {  // a row in three sees none of the first two stretches
        in.keep = Array<std::uint8_t, 4>({1, 1, 150, 400}, 1);
        for (std::int64_t i = 0; i < 150; i += 3)
          for (std::int64_t j = 0; j < 256; ++j) (*in.keep)(0, 0, i, j) = 0;
      }
      const auto keys = stretches_up_to({128, 128, 256, 400});
      expect_right(in, streamed(level, in, keys), 3);
      expect_right(in, merged(level, in, keys), 3);
    }
}

TEST_F(AttentionE4m3Hopper, StretchesOfQueriesAreTheWholesRows) {
  SCOPED_TRACE(seed_text());
  Random random(221);
  for (int i = 0; i < 12 && !HasFailure(); ++i) {
    const std::int64_t dim = choice<std::int64_t>(random, {32, 64, 96, 128});
    auto in = random_options_case(random, {random.integer(1, 2), 500, choice<std::int64_t>(random, {130, 300, 600}), 4, 2, dim, dim});
    in.options.query_offset = random.integer(-100, 300);
    in.options.key_offset   = random.integer(0, 100);
    const auto queries      = random_stretches(random, 500, 128);
    SCOPED_TRACE("case " + std::to_string(i) + ", " + text(in.shape()) + ", " + text(queries));
    expect_the_wholes_rows(level, in, queries);
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

TEST_F(AttentionE4m3Hopper, ACapturedCallStaysOnItsInstanceAndReadsTheInputsOfItsReplay) {
  Random                                    random(216);
  const AttentionShape                      shape{1, 200, 300, 2, 2, 128, 128};
  const Space                               exec = another_instance();
  const auto                                in   = random_case(random, shape);
  const AttentionCall<float8_e4m3_t, float> call(level, in);
  const View<float, 4>                      out("out", 1, 200, 2, 128);
  const View<float, 3>                      lse("lse", 1, 2, 200);
  const View<std::byte, 1>                  workspace(
                       "workspace", Tributary::attention_forward_workspace_size(exec, call.query, call.key, call.value, out, lse, call.options));
  const auto run = [&] { Tributary::attention_forward(exec, call.query, call.key, call.value, out, lse, call.options, workspace); };
  expect_stays_on_instance(exec, run);
  const auto          direct = call.forward();
  const CapturedGraph graph(exec, run);
  Kokkos::deep_copy(out, 7.0f);
  graph.launch();
  EXPECT_EQ(largest_difference(from_space<4>(out), direct.out), 0);
  for (int i = 0; i < 3; ++i) {
    auto changed = in;  // but for the scales
    fill(random, *in.query_scale, changed.query);
    fill(random, *in.key_scale, changed.key);
    fill(random, *in.value_scale, changed.value);
    Kokkos::deep_copy(call.query, in_space(changed.query));
    Kokkos::deep_copy(call.key, in_space(changed.key));
    Kokkos::deep_copy(call.value, in_space(changed.value));
    graph.launch();
    const AttentionResult<float> given{from_space<4>(out), from_space<3>(lse)};
    EXPECT_GT(largest_difference(given.out, direct.out), 0.1);
    expect_right(changed, given, 1);
  }
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
