#pragma once
#include <cmath>

#include "AttentionFormula.hpp"
#include "RandomOptions.hpp"

// Cases of FP8 e4m3 with a scale for each 128 rows of a head, and how close to the formula the levels come.  The formula takes the numbers
// that the stored ones stand for.

namespace TributaryTest {

using E4m3Case = AttentionCase<float8_e4m3_t>;

/// Scales that differ from block to block, as amax / 448 of normal numbers would.
inline Array<float, 3> random_scales(Random& random, const Array<float8_e4m3_t, 4>& rows) {
  Array<float, 3> scales({rows.extents[0], rows.extents[2], (rows.extents[1] + 127) / 128});
  for (float& scale : scales.values) scale = 0.004f + 0.02f * std::abs(random.normal());
  return scales;
}

/// Normal numbers, quantised with these scales.
inline void fill(Random& random, const Array<float, 3>& scales, Array<float8_e4m3_t, 4>& rows) {
  const auto [batch, count, heads, dim] = rows.extents;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t r = 0; r < count; ++r)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t d = 0; d < dim; ++d) rows(b, r, h, d) = float8_e4m3_t(random.normal() / scales(b, h, r / 128));
}

inline E4m3Case with_scales(Random& random, E4m3Case in) {
  in.query_scale = random_scales(random, in.query);
  in.key_scale   = random_scales(random, in.key);
  in.value_scale = random_scales(random, in.value);
  fill(random, *in.query_scale, in.query);
  fill(random, *in.key_scale, in.key);
  fill(random, *in.value_scale, in.value);
  return in;
}
inline E4m3Case random_case(Random& random, const AttentionShape& shape) { return with_scales(random, E4m3Case(shape)); }

/// Every option but rotary embedding.
inline E4m3Case random_options_case(Random& random, const AttentionShape& shape) {
  auto in           = with_scales(random, with_random_options<float8_e4m3_t>(random, shape));
  in.options.rotary = {};
  in.cosine.reset();
  in.sine.reset();
  in.query_positions.reset();
  in.key_positions.reset();
  return in;
}

inline FormulaResult<double> exact_result(const E4m3Case& in) {
  return Formula<double, double, double>(in, FormulaInputs<double>(in)).forward();
}
/// Sums in float; weights in float as the portable level has them, or in e4m3.
template <class Weight>
FormulaResult<float> naive_result(const E4m3Case& in) {
  return Formula<float, float, float, Weight>(in, FormulaInputs<float>(in)).forward();
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
  static void expect_right(const E4m3Case& in) { expect_right(in, AttentionCall<float8_e4m3_t, float>(level, in).forward(), 1); }
  /// \param shares  of how many numbers that are off by a score's error an output's weights are made
  static void expect_right(const E4m3Case& in, const AttentionResult<float>& given, double shares) {
    SCOPED_TRACE(text(in.shape()) + (in.options.causal ? ", causal" : ""));
    const auto   exact = exact_result(in);
    const auto   naive = naive_result<float8_e4m3_t>(in);
    const double off   = product_error(in);
    const double grown = in.options.dropout.probability < 1 ? 1 / (1 - in.options.dropout.probability) : 1;
    expect_close("out", given.out, exact.out, naive.out, 0x1p-6 + shares * off * grown);
    expect_close("lse", given.lse, exact.lse, naive.lse, 1e-6 + off);
  }
};

#endif

}  // namespace TributaryTest
