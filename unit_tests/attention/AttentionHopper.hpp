#pragma once
#include "AttentionFormula.hpp"

// What the tests of attention's Hopper level share.

namespace TributaryTest {

#if defined(TRIBUTARY_ENABLE_SM90)

class AttentionHopper : public HopperTest {
 public:
  static constexpr Level level = Level::hopper;

  template <class Out, class Element>
  static void expect_forward(const AttentionCase<Element>& in) {
    SCOPED_TRACE(text(in.shape()) + (in.options.causal ? ", causal" : "") + ", window " + std::to_string(in.options.window_left) + ", " +
                 std::to_string(in.options.window_right));
    expect_close(AttentionCall<Element, Out>(level, in).forward(), exact_formula(in).forward(), naive_formula(in).forward());
  }

  /// Every gradient, from the portable level's results.
  template <class Element>
  static void expect_backward(const AttentionCase<Element>& in, Random& random) {
    SCOPED_TRACE(text(in.shape()) + (in.options.causal ? ", causal" : "") + ", window " + std::to_string(in.options.window_left) + ", " +
                 std::to_string(in.options.window_right));
    const auto upstream = random_upstream(random, AttentionCall<Element>(Level::portable, in).forward(), random.coin());
    const auto given    = backward(in, upstream);
    const auto exact    = exact_formula(in).backward(upstream);
    const auto naive    = naive_formula(in).backward(upstream);
    expect_close(given, exact, naive);
  }
  template <class Element>
  static AttentionGradientArrays<Element> backward(const AttentionCase<Element>& in, const AttentionUpstream<Element>& upstream) {
    return AttentionCall<Element>(level, in).backward(upstream);
  }
  template <class Element>
  static bool same_gradients(const AttentionGradientArrays<Element>& a, const AttentionGradientArrays<Element>& b) {
    return largest_difference(a.query, b.query) == 0 && largest_difference(a.key, b.key) == 0 &&
           largest_difference(a.value, b.value) == 0 && largest_difference(a.additive_mask, b.additive_mask) == 0 &&
           largest_difference(a.alibi_slopes, b.alibi_slopes) == 0 && largest_difference(a.relative_bias, b.relative_bias) == 0 &&
           largest_difference(a.sink, b.sink) == 0;
  }
};

#endif

}  // namespace TributaryTest
