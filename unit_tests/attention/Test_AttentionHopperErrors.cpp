#include "attention/AttentionHopper.hpp"
#include "attention/Stretches.hpp"

// What the Hopper level does not take: asked for, it says so; otherwise another level does it.

namespace TributaryTest {
namespace {

#if defined(TRIBUTARY_ENABLE_SM90)

/// \param parts  of the message
template <class Out, class Element>
void expect_no_forward(const AttentionCase<Element>& in, std::initializer_list<std::string_view> parts) {
  SCOPED_TRACE(text(in.shape()));
  expect_refusal([&] { AttentionCall<Element, Out>(AttentionHopper::level, in).forward(); }, {"attention_forward", "Hopper"});
  expect_refusal([&] { AttentionCall<Element, Out>(AttentionHopper::level, in).forward(); }, parts);
  const auto given = AttentionCall<Element, Out>(Level::automatic, in).forward();
  expect_close(given, exact_formula(in).forward(), naive_formula(in).forward());
  const auto expected = AttentionCall<Element, Out>(Level::portable, in).forward();
  EXPECT_EQ(largest_difference(given.out, expected.out), 0);
  EXPECT_EQ(largest_difference(given.lse, expected.lse), 0);
}

template <class Out, class Element>
void expect_no_backward(const AttentionCase<Element>& in, Random& random, std::initializer_list<std::string_view> parts) {
  SCOPED_TRACE(text(in.shape()));
  const auto upstream = random_upstream(random, AttentionCall<Element, Out>(Level::portable, in).forward(), true);
  expect_refusal([&] { AttentionCall<Element, Out>(AttentionHopper::level, in).backward(upstream); }, {"attention_backward", "Hopper"});
  expect_refusal([&] { AttentionCall<Element, Out>(AttentionHopper::level, in).backward(upstream); }, parts);
  const auto given = AttentionCall<Element, Out>(Level::automatic, in).backward(upstream);
  expect_close(given, exact_formula(in).backward(upstream), naive_formula(in).backward(upstream));
  const auto expected = AttentionCall<Element, Out>(Level::portable, in).backward(upstream);
  EXPECT_EQ(largest_difference(given.query, expected.query), 0);
  EXPECT_EQ(largest_difference(given.key, expected.key), 0);
  EXPECT_EQ(largest_difference(given.value, expected.value), 0);
}

TEST_F(AttentionHopper, RefusesHeadDimensionsAndTypes) {
  Random                          random(109);
  const AttentionCase<bfloat16_t> wide({1, 3, 3, 1, 1, 520, 8}, random);
  const AttentionCase<bfloat16_t> small({1, 3, 3, 1, 1, 8, 8}, random);
  const AttentionCase<float>      floats({1, 3, 3, 1, 1, 8, 8}, random);
  expect_no_forward<bfloat16_t>(wide, {"up to 512"});
  expect_no_backward<bfloat16_t>(wide, random, {"up to 512"});
  expect_no_forward<float>(floats, {"float"});
  expect_no_backward<float>(floats, random, {"float"});
  AttentionHopper::expect_forward<float>(small);
  expect_no_backward<float>(small, random, {"grad_out is float"});
}

TEST_F(AttentionHopper, RefusesRowsThatAreNotAligned) {
  Random                          random(330);
  const AttentionCase<bfloat16_t> narrow({1, 3, 3, 2, 1, 4, 8}, random), narrow_values({1, 3, 3, 2, 1, 8, 12}, random);
  expect_no_forward<bfloat16_t>(narrow, {"query's", "16 bytes"});
  expect_no_forward<bfloat16_t>(narrow_values, {"value's", "16 bytes"});
  expect_no_backward<bfloat16_t>(narrow_values, random, {"value's", "16 bytes"});
  // copies of turned rows are as long as the head
  AttentionCase<bfloat16_t> turned({1, 30, 40, 2, 1, 12, 8}, random);
  turned.options.rotary = {.dims = 8};
  expect_no_forward<bfloat16_t>(turned, {"rotated", "16 bytes"});
  expect_no_backward<bfloat16_t>(turned, random, {"rotated", "16 bytes"});
}

TEST_F(AttentionHopper, RefusesFarOffsets) {
  Random                    random(331);
  AttentionCase<bfloat16_t> in({1, 30, 40, 2, 1, 16, 8}, random);
  in.options.query_offset = std::int64_t{1} << 29;
  expect_no_forward<bfloat16_t>(in, {"2^29"});
  expect_no_backward<bfloat16_t>(in, random, {"2^29"});
  in.options.causal      = true;
  in.options.window_left = 20;
  in.options.key_offset  = (std::int64_t{1} << 29) - 15;  // far from zero, near each other
  AttentionHopper::expect_forward<bfloat16_t>(in);
  AttentionHopper::expect_backward(in, random);
}

TEST_F(AttentionHopper, RefusesAGradientOfKeysThatIsNotAligned) {
  Random                          random(332);
  const AttentionCase<bfloat16_t> in({1, 30, 40, 2, 1, 16, 16}, random);
  AttentionCall<bfloat16_t>       call(level, in);
  const auto                      upstream = random_upstream(random, AttentionCall<bfloat16_t>(Level::portable, in).forward(), false);
  const auto                      out = in_space(upstream.forward.out), grad_out = in_space(upstream.grad_out);
  const auto                      lse        = in_space(upstream.forward.lse);
  const auto                      grad_query = in_space(in.query), grad_value = in_space(in.value);
  const auto                      wide     = in_space(Array<bfloat16_t, 4>({1, 40, 1, 24}, bfloat16_t(7.0f)));
  const auto                      grad_key = Kokkos::subview(wide, Kokkos::ALL, Kokkos::ALL, Kokkos::ALL, Kokkos::pair(1, 17));
  const auto                      run      = [&] {
    Tributary::attention_backward(Space{}, call.query, call.key, call.value, out, lse, grad_out, grad_query, grad_key, grad_value,
                                                            call.options);
  };
  expect_refusal(run, {"attention_backward", "Hopper", "grad_key's", "16 bytes"});
  call.options.level = Level::automatic;
  run();
  const auto right = exact_formula(in).backward(upstream);
  const auto usual = naive_formula(in).backward(upstream);
  const auto given = from_space<4>(wide);
  expect_close("gradient of key", part_of(given, 3, {1, 17}), right.key, usual.key, 4e-6);
  expect_close("gradient of query", from_space<4>(grad_query), right.query, usual.query, 4e-6);
  for (std::int64_t j = 0; j < 40; ++j)
    for (const std::int64_t d : {0, 17, 18, 19, 20, 21, 22, 23}) EXPECT_EQ(static_cast<float>(given(0, j, 0, d)), 7);
}

/// All heads of the keys, or of the values, are one: a stride of 0, which the copy engine has no map for.
TEST_F(AttentionHopper, RefusesInputsThatAreBroadcast) {
  Random random(333);
  using Strided = Kokkos::View<const half_t****, Kokkos::LayoutStride, Kokkos::Device<Space, Memory>, Kokkos::MemoryUnmanaged>;
  AttentionCase<half_t> in({2, 30, 40, 4, 2, 16, 16}, random);
  for (auto* const rows : {&in.key, &in.value})
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t j = 0; j < 40; ++j)
        for (std::int64_t d = 0; d < 16; ++d) (*rows)(b, j, 1, d) = (*rows)(b, j, 0, d);
  AttentionCall<half_t> call(level, in);
  const auto one = [](const View<half_t, 4>& rows) { return Strided(rows.data(), Kokkos::LayoutStride(2, 1280, 40, 32, 2, 0, 16, 1)); };
  const auto key = one(call.key), value = one(call.value);
  const auto out  = in_space(call.empty_result().out);
  const auto lse  = in_space(call.empty_result().lse);
  const auto give = [&](const auto& keys, const auto& values) {
    Tributary::attention_forward(Space{}, call.query, keys, values, out, lse, call.options);
  };
  const Strided all_keys(call.key), all_values(call.value);
  expect_refusal([&] { give(key, all_values); }, {"attention_forward", "Hopper", "key has a stride of 0"});
  expect_refusal([&] { give(all_keys, value); }, {"attention_forward", "Hopper", "value has a stride of 0"});
  call.options.level = Level::automatic;
  give(key, value);
  const AttentionResult<half_t> result{from_space<4>(out), from_space<3>(lse)};
  expect_close(result, exact_formula(in).forward(), naive_formula(in).forward());

  const auto upstream   = random_upstream(random, result, false);
  const auto grad_out   = in_space(upstream.grad_out);
  const auto grad_query = in_space(in.query), grad_key = in_space(in.key), grad_value = in_space(in.value);
  const auto backward = [&] {
    Tributary::attention_backward(Space{}, call.query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, call.options);
  };
  backward();
  const AttentionGradientArrays<half_t> gradients{
      from_space<4>(grad_query), from_space<4>(grad_key), from_space<4>(grad_value), {}, {}, {}, {}};
  expect_close(gradients, exact_formula(in).backward(upstream), naive_formula(in).backward(upstream));
  call.options.level = level;
  expect_refusal(backward, {"attention_backward", "Hopper", "key has a stride of 0"});
}

#endif

}  // namespace
}  // namespace TributaryTest
