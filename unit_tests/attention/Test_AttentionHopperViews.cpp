#include <cmath>

#include "attention/AttentionHopper.hpp"

// The Hopper level on Views with strides, and beside memory that is not its own: padding, neighbours, hidden keys.

namespace TributaryTest {
namespace {

#if defined(TRIBUTARY_ENABLE_SM90)

/// Query, key and value as one product makes them, [B, S, 3, H, D], and their gradients as its gradient wants them.  Strides change no bit.
template <class Element>
void interleaved(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random     random(stream);
  const auto all = Kokkos::ALL;
  for (const std::int64_t dim : {8, 64, 72, 128, 256, 512})
    for (const bool causal : {false, true}) {
      AttentionCase<Element> in({2, 200, 200, 3, 3, dim, dim}, random);
      SCOPED_TRACE(text(in.shape()) + (causal ? ", causal" : ""));
      in.options.causal = causal;
      const AttentionCall<Element> call(AttentionHopper::level, in);
      const auto                   expected = call.forward();
      Array<Element, 4>            rows({2, 200, 9, dim});
      embed(rows, in.query, {0, 0, 0, 0});
      embed(rows, in.key, {0, 0, 3, 0});
      embed(rows, in.value, {0, 0, 6, 0});
      const auto part = [&](const View<Element, 4>& of, int which) {
        return Kokkos::subview(View<Element, 5>(of.data(), 2, 200, 3, 3, dim), all, all, which, all, all);
      };
      const auto qkv   = in_space(rows);
      const auto query = part(qkv, 0), key = part(qkv, 1), value = part(qkv, 2);
      const auto out = in_space(call.empty_result().out);
      const auto lse = in_space(call.empty_result().lse);
      Tributary::attention_forward(Space{}, query, key, value, out, lse, call.options);
      EXPECT_EQ(largest_difference(from_space<4>(out), expected.out), 0);
      EXPECT_EQ(largest_difference(from_space<3>(lse), expected.lse), 0);
      const auto upstream = random_upstream(random, expected, false);
      const auto dense    = AttentionHopper::backward(in, upstream);
      const auto grad_out = in_space(upstream.grad_out), gradients = in_space(Array<Element, 4>(rows.extents, Element(7.0f)));
      Tributary::attention_backward(Space{}, query, key, value, out, lse, grad_out, part(gradients, 0), part(gradients, 1),
                                    part(gradients, 2), call.options);
      embed(rows, dense.query, {0, 0, 0, 0});
      embed(rows, dense.key, {0, 0, 3, 0});
      embed(rows, dense.value, {0, 0, 6, 0});
      EXPECT_EQ(largest_difference(from_space<4>(gradients), rows), 0);
    }
}
TEST_F(AttentionHopper, QueryKeyAndValueInterleavedInBfloat16) { interleaved<bfloat16_t>(310); }
TEST_F(AttentionHopper, QueryKeyAndValueInterleavedInHalf) { interleaved<half_t>(311); }

/// Every array is the middle of a larger one whose rows are padded to whole 16 bytes.  Around inputs there is NaN; what is around outputs
/// stays.
template <class Element, class Out>
void padded(Random& random, std::int64_t head_dim, std::int64_t value_dim) {
  AttentionCase<Element> in({2, 133, 90, 2, 1, head_dim, value_dim}, random);
  SCOPED_TRACE(text(in.shape()));
  in.options.causal        = true;
  const auto         all   = Kokkos::ALL;
  const std::int64_t width = (std::max(head_dim, value_dim) + 7) / 8 * 8 + 16;
  const Kokkos::pair queries(4, 137), keys(6, 96), heads(1, 3), key_heads(1, 2);
  const Kokkos::pair dims(std::int64_t{8}, 8 + head_dim), value_dims(std::int64_t{8}, 8 + value_dim);
  const auto         within = []<class T>(const Array<T, 4>& middle, std::int64_t rows, std::int64_t heads_around, std::int64_t columns,
                                  std::int64_t first_row, float around) {
    Array<T, 4> whole({2, rows, heads_around, columns}, T(around));
    embed(whole, middle, {0, first_row, 1, 8});
    return whole;
  };
  const auto query_rows = [&](const auto& middle, float around) { return within(middle, 150, 4, width, 4, around); };
  const auto key_rows   = [&](const auto& middle, float around) { return within(middle, 110, 3, width, 6, around); };
  const auto query_all = in_space(query_rows(in.query, NAN)), key_all = in_space(key_rows(in.key, NAN)),
             value_all = in_space(key_rows(in.value, NAN));
  const auto query = Kokkos::subview(query_all, all, queries, heads, dims), key = Kokkos::subview(key_all, all, keys, key_heads, dims),
             value         = Kokkos::subview(value_all, all, keys, key_heads, value_dims);
  AttentionOptions options = in.options;
  options.level            = AttentionHopper::level;

  const auto out_all = in_space(Array<Out, 4>({2, 150, 4, width}, Out(7.0f)));
  const auto lse_all = in_space(Array<float, 3>({2, 4, 150}, 7.0f));
  const auto out     = Kokkos::subview(out_all, all, queries, heads, value_dims);
  const auto lse     = Kokkos::subview(lse_all, all, heads, queries);
  Tributary::attention_forward(Space{}, query, key, value, out, lse, options);
  // What the middle of a larger array holds; the rest of it must be 7.
  const auto middle_of = []<class T>(const Array<T, 4>& whole, const Array<T, 4>& like, std::int64_t first_row) {
    Array<T, 4> middle(like.extents), sevens(whole.extents, T(7.0f));
    for (std::int64_t b = 0; b < like.extents[0]; ++b)
      for (std::int64_t r = 0; r < like.extents[1]; ++r)
        for (std::int64_t h = 0; h < like.extents[2]; ++h)
          for (std::int64_t d = 0; d < like.extents[3]; ++d) middle(b, r, h, d) = whole(b, r + first_row, h + 1, d + 8);
    embed(sevens, middle, {0, first_row, 1, 8});
    EXPECT_EQ(largest_difference(whole, sevens), 0);
    return middle;
  };
  AttentionResult<Out> result{middle_of(from_space<4>(out_all), Array<Out, 4>({2, 133, 2, value_dim}), 4), Array<float, 3>({2, 2, 133})};
  const auto           all_lse = from_space<3>(lse_all);
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t h = 0; h < 4; ++h)
      for (std::int64_t i = 0; i < 150; ++i) {
        const bool inside = h >= 1 && h < 3 && i >= 4 && i < 137;
        if (inside) result.lse(b, h - 1, i - 4) = all_lse(b, h, i);
        ASSERT_TRUE(inside || all_lse(b, h, i) == 7.0f);
      }
  expect_close(result, exact_formula(in).forward(), naive_formula(in).forward());
  if constexpr (std::is_same_v<Out, Element>) {
    const auto upstream     = random_upstream(random, result, false);
    const auto grad_out_all = in_space(query_rows(upstream.grad_out, NAN));
    // The gradient of queries need not be aligned.
    const auto grad_query_all = in_space(Array<Element, 4>({2, 150, 4, width + head_dim % 4 / 2}, Element(7.0f))),
               grad_key_all   = in_space(Array<Element, 4>({2, 110, 3, width}, Element(7.0f))),
               grad_value_all = in_space(Array<Element, 4>({2, 110, 3, width}, Element(7.0f)));
    Tributary::attention_backward(Space{}, query, key, value, out, lse, Kokkos::subview(grad_out_all, all, queries, heads, value_dims),
                                  Kokkos::subview(grad_query_all, all, queries, heads, dims),
                                  Kokkos::subview(grad_key_all, all, keys, key_heads, dims),
                                  Kokkos::subview(grad_value_all, all, keys, key_heads, value_dims), options);
    const AttentionGradientArrays<Element> given{middle_of(from_space<4>(grad_query_all), in.query, 4),
                                                 middle_of(from_space<4>(grad_key_all), in.key, 6),
                                                 middle_of(from_space<4>(grad_value_all), in.value, 6),
                                                 {},
                                                 {},
                                                 {},
                                                 {}};
    expect_close(given, exact_formula(in).backward(upstream), naive_formula(in).backward(upstream));
  }
}

TEST_F(AttentionHopper, PaddedRowsTouchOnlyTheirElements) {
  SCOPED_TRACE(seed_text());
  Random random(312);
  for (const auto& [head_dim, value_dim] : {std::pair{5, 7}, {7, 5}, {61, 63}, {127, 121}, {129, 255}, {261, 509}, {5, 300}}) {
    padded<bfloat16_t, bfloat16_t>(random, head_dim, value_dim);
    padded<half_t, half_t>(random, head_dim, value_dim);
    padded<bfloat16_t, float>(random, head_dim, value_dim);
  }
}

/// Nothing changes a bit when keys that nobody sees, unseen(b, j), hold NaN, and their gradients are 0.
template <class Unseen>
void expect_unseen(const AttentionCase<bfloat16_t>& clean, Random& random, const Unseen& unseen) {
  auto       in    = clean;
  const auto shape = in.shape();
  const auto each  = [&](const auto& use) {
    for (std::int64_t b = 0; b < shape.batch; ++b)
      for (std::int64_t j = 0; j < shape.keys; ++j)
        for (std::int64_t h = 0; h < shape.key_heads && unseen(b, j); ++h)
          for (std::int64_t d = 0; d < shape.head_dim; ++d) use(b, j, h, d);
  };
  each([&](auto... at) { in.key(at...) = in.value(at...) = bfloat16_t(NAN); });
  const auto expected = AttentionCall<bfloat16_t>(AttentionHopper::level, clean).forward();
  const auto given    = AttentionCall<bfloat16_t>(AttentionHopper::level, in).forward();
  EXPECT_EQ(largest_difference(given.out, expected.out), 0);
  EXPECT_EQ(largest_difference(given.lse, expected.lse), 0);
  const auto upstream  = random_upstream(random, expected, true);
  const auto gradients = AttentionHopper::backward(in, upstream);
  EXPECT_TRUE(AttentionHopper::same_gradients(gradients, AttentionHopper::backward(clean, upstream)));
  each([&](auto... at) {
    EXPECT_EQ(static_cast<float>(gradients.key(at...)), 0);
    EXPECT_EQ(static_cast<float>(gradients.value(at...)), 0);
  });
}

TEST_F(AttentionHopper, HiddenKeysMayHoldAnything) {
  Random random(104);
  for (const std::int64_t dim : {64, 128, 256, 512}) {
    SCOPED_TRACE("dim " + std::to_string(dim));
    AttentionCase<bfloat16_t> in({2, 70, 333, 2, 1, dim, dim}, random);
    in.key_keep = Array<std::uint8_t, 2>({2, 333});
    for (auto& keep : in.key_keep->values) keep = random.integer<std::uint8_t>(0, 2);
    expect_unseen(in, random, [&](std::int64_t b, std::int64_t j) { return (*in.key_keep)(b, j) == 0; });
    AttentionHopper::expect_backward(in, random);
  }
}

TEST_F(AttentionHopper, APackedSequenceDoesNotSeeItsNeighbours) {
  Random random(105);
  for (const bool causal : {false, true})
    for (const std::int64_t dim : {64, 128, 256, 512}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + (causal ? ", causal" : ""));
      AttentionCase<bfloat16_t> in({1, 700, 900, 4, 2, dim, dim}, random);
      in.options.causal = causal;
      in.cu_seqlens_q   = {0, 130, 130, 300, 301, 700};
      in.cu_seqlens_k   = {0, 200, 333, 333, 500, 900};
      AttentionHopper::expect_forward<bfloat16_t>(in);
      AttentionHopper::expect_backward(in, random);
      expect_unseen(in, random, [](std::int64_t, std::int64_t j) { return 200 <= j && j < 333; });  // the sequence without queries
    }
}

#endif

}  // namespace
}  // namespace TributaryTest
