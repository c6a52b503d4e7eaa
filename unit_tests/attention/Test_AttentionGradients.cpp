#include "attention/AttentionFormula.hpp"

// Every gradient against central differences of the formula in double: L = sum(dO * O) + sum(dLSE * LSE).  With a step of 1e-5 the
// differences are right to about 1e-9; what is left is float's rounding of saved results and gradients: 2e-6 of the largest, or 1.

namespace TributaryTest {
namespace {

class AttentionGradient : public LevelTest {
 public:
  void SetUp() override { in.options.scale = 0.4f; }

  Random               random{20};
  AttentionCase<float> in{{2, 5, 6, 4, 2, 4, 3}, random};

  /// The gradients of this case, every input's against its differences.
  void expect_differences() {
    const AttentionCall<float> call(level(), in);
    const auto                 upstream = random_upstream(random, call.forward(), true);
    const auto                 given    = call.backward(upstream);
    const auto                 member   = [&](const char* name, const auto& gradient, auto FormulaInputs<double>::*input) {
      FormulaInputs<double> inputs(in);
      auto&                 numbers = (inputs.*input).values;
      ASSERT_EQ(gradient.values.size(), numbers.size()) << name;
      for (std::size_t n = 0; n < numbers.size(); ++n) {
        const double middle = numbers[n], step = 1e-5;
        if (!std::isfinite(middle)) {
          EXPECT_EQ(gradient.values[n], 0) << name << " " << n;
          continue;
        }
        numbers[n]            = middle + step;
        const double above    = loss(inputs, upstream);
        numbers[n]            = middle - step;
        const double below    = loss(inputs, upstream);
        numbers[n]            = middle;
        const double expected = (above - below) / (2 * step);
        EXPECT_NEAR(static_cast<double>(gradient.values[n]), expected, 2e-6 * std::max(1.0, std::abs(expected)) + 2e-6) << name << " " << n;
      }
    };
    member("query", given.query, &FormulaInputs<double>::query);
    member("key", given.key, &FormulaInputs<double>::key);
    member("value", given.value, &FormulaInputs<double>::value);
    member("additive_mask", given.additive_mask, &FormulaInputs<double>::additive_mask);
    member("alibi_slopes", given.alibi_slopes, &FormulaInputs<double>::alibi_slopes);
    member("relative_bias", given.relative_bias, &FormulaInputs<double>::relative_bias);
    member("sink", given.sink, &FormulaInputs<double>::sink);
  }
  template <class T, int Rank>
  Array<T, Rank> normals(const std::array<std::int64_t, Rank>& extents) {
    Array<T, Rank> array(extents);
    random.fill_with_normals(array);
    return array;
  }

 private:
  double loss(const FormulaInputs<double>& inputs, const AttentionUpstream<float>& upstream) const {
    const auto result = Formula<double, double, double>(in, inputs).forward();  // differentiable: rotated values are not rounded
    double     sum    = 0;
    for (std::size_t n = 0; n < result.out.values.size(); ++n)
      sum += result.out.values[n] * static_cast<double>(upstream.grad_out.values[n]);
    for (std::size_t n = 0; n < result.lse.values.size(); ++n)
      if (std::isfinite(result.lse.values[n])) sum += result.lse.values[n] * static_cast<double>(upstream.grad_lse->values[n]);
    return sum;
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionGradient, testing::ValuesIn(all_levels()), level_name);

TEST_P(AttentionGradient, Plain) { expect_differences(); }

TEST_P(AttentionGradient, CausalAndWindow) {
  in.options.causal      = true;
  in.options.window_left = 2;
  expect_differences();
}

TEST_P(AttentionGradient, Softcap) {
  in.options.softcap = 0.7f;
  expect_differences();
}

TEST_P(AttentionGradient, AdditiveMaskOfEveryBroadcastShape) {
  for (const std::int64_t batch : {1, 2})
    for (const std::int64_t heads : {1, 4})
      for (const std::int64_t queries : {1, 5}) {
        SCOPED_TRACE("[" + std::to_string(batch) + ", " + std::to_string(heads) + ", " + std::to_string(queries) + ", 6]");
        in.additive_mask            = normals<float, 4>({batch, heads, queries, 6});
        in.additive_mask->values[2] = -infinite;
        expect_differences();
      }
}

TEST_P(AttentionGradient, AlibiSlopes) {
  in.alibi_slopes = normals<float, 2>({1, 4});
  expect_differences();
  in.alibi_slopes = normals<float, 2>({2, 4});
  expect_differences();
}

TEST_P(AttentionGradient, RelativeBias) {
  in.relative_bias                      = normals<float, 2>({6, 4});
  in.options.relative_bias.max_distance = 4;
  expect_differences();
  in.options.relative_bias.bidirectional = false;
  expect_differences();
}

TEST_P(AttentionGradient, Sink) {
  in.sink = normals<float, 1>({4});
  expect_differences();
}

TEST_P(AttentionGradient, Rotary) {
  for (const auto style : {RotaryStyle::half, RotaryStyle::interleaved})
    for (const bool last : {false, true})
      for (const std::int32_t dims : {2, 4}) {
        in.options.rotary = {.dims = dims, .style = style, .last = last, .base = 50};
        expect_differences();
      }
}

TEST_P(AttentionGradient, Dropout) {
  in.options.dropout = {.probability = 0.4, .seed = 99, .offset = 3};
  expect_differences();
}

TEST_P(AttentionGradient, RowsAndKeysWithoutAPair) {
  in.keep = Array<std::uint8_t, 4>({2, 1, 5, 6}, 1);
  for (std::int64_t j = 0; j < 6; ++j) (*in.keep)(0, 0, 3, j) = 0;
  for (std::int64_t i = 0; i < 5; ++i) (*in.keep)(1, 0, i, 4) = 0;
  in.sink = normals<float, 1>({4});
  expect_differences();
}

TEST_P(AttentionGradient, EverythingTogether) {
  in.options.causal                     = true;
  in.options.softcap                    = 1.5f;
  in.options.rotary                     = {.dims = 2, .style = RotaryStyle::interleaved, .last = true, .base = 30};
  in.options.dropout                    = {.probability = 0.25, .seed = 5};
  in.options.relative_bias.max_distance = 3;
  in.relative_bias                      = normals<float, 2>({4, 4});
  in.alibi_slopes                       = normals<float, 2>({2, 4});
  in.additive_mask                      = normals<float, 4>({2, 1, 5, 6});
  in.sink                               = normals<float, 1>({4});
  in.key_keep                           = Array<std::uint8_t, 2>({2, 6}, 1);
  (*in.key_keep)(1, 0)                  = 0;
  expect_differences();
}

}  // namespace
}  // namespace TributaryTest
