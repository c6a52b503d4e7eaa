#include "KokkosEvents.hpp"
#include "attention/AttentionFormula.hpp"

// Workspaces, instances, strides, and the same bits from every run.

namespace TributaryTest {
namespace {

/// Every option at once, on a shape of several tiles.
template <class Element>
AttentionCase<Element> rich_case(Random& random) {
  AttentionCase<Element> in({2, 70, 131, 4, 2, 32, 24}, random);
  in.options.causal                     = true;
  in.options.window_left                = 90;
  in.options.softcap                    = 3;
  in.options.rotary                     = {.dims = 16};
  in.options.dropout                    = {.probability = 0.1, .seed = 7};
  in.options.relative_bias.max_distance = 60;
  in.key_keep                           = Array<std::uint8_t, 2>({2, 131});
  in.additive_mask                      = Array<float, 4>({1, 4, 1, 131});
  in.alibi_slopes                       = Array<float, 2>({1, 4}, 0.05f);
  in.relative_bias                      = Array<float, 2>({16, 4});
  in.sink                               = Array<float, 1>({4}, 0.3f);
  for (auto& keep : in.key_keep->values) keep = random.integer<std::uint8_t>(0, 4);
  random.fill_with_normals(*in.additive_mask);
  random.fill_with_normals(*in.relative_bias);
  return in;
}

class AttentionMemory : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionMemory, testing::ValuesIn(all_levels()), level_name);

template <class T>
bool same_memory(const std::vector<T>& a, const std::vector<T>& b) {
  const auto bytes = [](const std::vector<T>& values) {
    return std::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  };
  return bytes(a) == bytes(b);
}

template <class Element>
void every_run_gives_the_same_bits(Level level) {
  Random                       random(70);
  const AttentionCall<Element> call(level, rich_case<Element>(random));
  const auto                   first    = call.forward();
  const auto                   upstream = random_upstream(random, first, true);
  const auto                   g        = call.backward(upstream);
  for (int run = 0; run < 3; ++run) {
    const auto again = call.forward();
    const auto a     = call.backward(upstream);
    EXPECT_TRUE(same_memory(again.out.values, first.out.values) && same_memory(again.lse.values, first.lse.values));
    EXPECT_TRUE(same_memory(a.query.values, g.query.values) && same_memory(a.key.values, g.key.values) &&
                same_memory(a.value.values, g.value.values));
    EXPECT_TRUE(same_memory(a.additive_mask.values, g.additive_mask.values) && same_memory(a.alibi_slopes.values, g.alibi_slopes.values) &&
                same_memory(a.relative_bias.values, g.relative_bias.values) && same_memory(a.sink.values, g.sink.values));
  }
}
TEST_P(AttentionMemory, EveryRunGivesTheSameBitsOfFloat) { every_run_gives_the_same_bits<float>(level()); }
TEST_P(AttentionMemory, EveryRunGivesTheSameBitsOfBfloat16) { every_run_gives_the_same_bits<bfloat16_t>(level()); }

/// One key head of many blocks of keys, so that workers hand the gradients of the same queries on.
TEST(AttentionOrder, GradientsDoNotDependOnHowManyWorkersShareAHead) {
  Random random(76);
  for (const bool causal : {false, true}) {
    AttentionCase<float> in({1, 301, 1500, 2, 1, 20, 24}, random);
    in.options.causal      = causal;
    in.options.window_left = causal ? 700 : -1;
    in.alibi_slopes        = Array<float, 2>({1, 2}, 0.02f);
    in.relative_bias       = Array<float, 2>({16, 2}, 0.1f);
    const AttentionCall<float> call(Level::portable, in);
    const auto                 upstream = random_upstream(random, call.forward(), true);
    const auto                 g        = call.backward(upstream);
    const auto                 expected = exact_formula(in).backward(upstream);
    EXPECT_LE(largest_difference(g.query, expected.query), 1e-5);
    EXPECT_LE(largest_difference(g.key, expected.key), 1e-5);
    EXPECT_LE(largest_difference(g.value, expected.value), 1e-5);
    const bool shared = std::is_same_v<Space::memory_space, Kokkos::HostSpace> && Space{}.concurrency() > 1;
    const auto fewer  = shared ? Kokkos::Experimental::partition_space(Space{}, 1, 1)[0] : Space{};
    for (int run = 0; run < 10; ++run) {
      const auto again = call.backward(upstream, run % 2 == 0 ? fewer : Space{});
      EXPECT_TRUE(same_memory(again.query.values, g.query.values) && same_memory(again.key.values, g.key.values) &&
                  same_memory(again.value.values, g.value.values));
      EXPECT_TRUE(same_memory(again.alibi_slopes.values, g.alibi_slopes.values) &&
                  same_memory(again.relative_bias.values, g.relative_bias.values));
    }
  }
}

TEST_P(AttentionMemory, StridedViewsTouchOnlyTheirElements) {
  Random random(71);
  // every array is the middle of a larger one
  AttentionCase<float> wide({2, 20, 50, 6, 4, 16, 20}, random), in({2, 11, 37, 4, 2, 9, 13});
  const Kokkos::pair   queries(4, 15), keys(6, 43), heads(1, 5), key_heads(1, 3), dims(3, 12), value_dims(2, 15);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t i = 0; i < 11; ++i)
      for (std::int64_t h = 0; h < 4; ++h)
        for (std::int64_t d = 0; d < 9; ++d) in.query(b, i, h, d) = wide.query(b, i + 4, h + 1, d + 3);
    for (std::int64_t j = 0; j < 37; ++j)
      for (std::int64_t h = 0; h < 2; ++h) {
        for (std::int64_t d = 0; d < 9; ++d) in.key(b, j, h, d) = wide.key(b, j + 6, h + 1, d + 3);
        for (std::int64_t d = 0; d < 13; ++d) in.value(b, j, h, d) = wide.value(b, j + 6, h + 1, d + 2);
      }
  }
  const AttentionCall<float> call(level(), wide), dense(level(), in);
  const auto                 expected  = dense.forward();
  const auto                 upstream  = random_upstream(random, expected, false);
  const auto                 gradients = dense.backward(upstream);

  const auto all   = Kokkos::ALL;
  const auto query = Kokkos::subview(call.query, all, queries, heads, dims), key = Kokkos::subview(call.key, all, keys, key_heads, dims),
             value   = Kokkos::subview(call.value, all, keys, key_heads, value_dims);
  const auto out_all = in_space(Array<float, 4>({2, 20, 6, 20}, 7.0f)), grad_out_all = in_space(Array<float, 4>({2, 20, 6, 20}, 7.0f));
  const auto lse_all  = in_space(Array<float, 3>({2, 6, 20}, 7.0f));
  const auto out      = Kokkos::subview(out_all, all, queries, heads, value_dims),
             grad_out = Kokkos::subview(grad_out_all, all, queries, heads, value_dims);
  const auto lse      = Kokkos::subview(lse_all, all, heads, queries);
  Tributary::attention_forward(Space{}, query, key, value, out, lse, call.options);
  Kokkos::deep_copy(grad_out, in_space(upstream.grad_out));
  const auto grad_query_all = in_space(Array<float, 4>(wide.query.extents, 7.0f)),
             grad_key_all   = in_space(Array<float, 4>(wide.key.extents, 7.0f)),
             grad_value_all = in_space(Array<float, 4>(wide.value.extents, 7.0f));
  Tributary::attention_backward(Space{}, query, key, value, out, lse, grad_out, Kokkos::subview(grad_query_all, all, queries, heads, dims),
                                Kokkos::subview(grad_key_all, all, keys, key_heads, dims),
                                Kokkos::subview(grad_value_all, all, keys, key_heads, value_dims), call.options);

  const auto embedded = [](const Array<float, 4>& middle, const std::array<std::int64_t, 4>& extents, std::int64_t row, std::int64_t head,
                           std::int64_t d0) {
    Array<float, 4> array(extents, 7.0f);
    for (std::int64_t b = 0; b < middle.extents[0]; ++b)
      for (std::int64_t i = 0; i < middle.extents[1]; ++i)
        for (std::int64_t h = 0; h < middle.extents[2]; ++h)
          for (std::int64_t d = 0; d < middle.extents[3]; ++d) array(b, i + row, h + head, d + d0) = middle(b, i, h, d);
    return array;
  };
  EXPECT_LE(largest_difference(from_space<4>(out_all), embedded(expected.out, {2, 20, 6, 20}, 4, 1, 2)), 2e-6);
  EXPECT_LE(largest_difference(from_space<4>(grad_query_all), embedded(gradients.query, wide.query.extents, 4, 1, 3)), 1e-5);
  EXPECT_LE(largest_difference(from_space<4>(grad_key_all), embedded(gradients.key, wide.key.extents, 6, 1, 3)), 1e-5);
  EXPECT_LE(largest_difference(from_space<4>(grad_value_all), embedded(gradients.value, wide.value.extents, 6, 1, 2)), 1e-5);
  const auto given_lse = from_space<3>(lse_all);
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t h = 0; h < 6; ++h)
      for (std::int64_t i = 0; i < 20; ++i) {
        const bool inside = h >= 1 && h < 5 && i >= 4 && i < 15;
        ASSERT_NEAR(given_lse(b, h, i), inside ? expected.lse(b, h - 1, i - 4) : 7.0f, 2e-6f);
      }
}

TEST_P(AttentionMemory, OneSequenceWithoutABatchAndWithoutLse) {
  Random                     random(72);
  const AttentionCase<float> in({1, 12, 20, 4, 2, 8, 8}, random);
  const AttentionCall<float> call(level(), in);
  const auto                 whole = [](const auto& view) { return Kokkos::subview(view, 0, Kokkos::ALL, Kokkos::ALL, Kokkos::ALL); };
  const View<float, 3>       out("out", 12, 4, 8);
  Tributary::attention_forward(whole(call.query), whole(call.key), whole(call.value), out, std::nullopt,
                               call.options);  // the default instance
  EXPECT_TRUE(same_memory(from_space<3>(out).values, call.forward().out.values));
}

/// Views of a forward and a backward call, and their workspaces.
struct BothCalls {
  AttentionCall<float> call;
  View<float, 4>       out, grad_out, grad_query, grad_key, grad_value;
  View<float, 3>       lse;

  explicit BothCalls(const AttentionCase<float>& in)
      : call(Level::portable, in),
        out(in_space(call.empty_result().out)),
        grad_out(in_space(call.empty_result().out)),
        grad_query(in_space(in.query)),
        grad_key(in_space(in.key)),
        grad_value(in_space(in.value)),
        lse(in_space(call.empty_result().lse)) {}

  std::size_t forward_size(const Space& exec) const {
    return Tributary::attention_forward_workspace_size(exec, call.query, call.key, call.value, out, lse, call.options);
  }
  std::size_t backward_size(const Space& exec) const {
    return Tributary::attention_backward_workspace_size(exec, call.query, call.key, call.value, out, lse, grad_out, grad_query, grad_key,
                                                        grad_value, call.options);
  }
  template <class Workspace>
  void forward(const Space& exec, const Workspace& workspace) const {
    Tributary::attention_forward(exec, call.query, call.key, call.value, out, lse, call.options, workspace);
  }
  template <class Workspace>
  void backward(const Space& exec, const Workspace& workspace) const {
    Tributary::attention_backward(exec, call.query, call.key, call.value, out, lse, grad_out, grad_query, grad_key, grad_value,
                                  call.options, {}, workspace);
  }
};

TEST(AttentionInstance, WithAWorkspaceOnlyTheCallersInstanceIsUsed) {
  Random                   random(73);
  const Space              exec = another_instance();
  const BothCalls          both(rich_case<float>(random));
  const View<std::byte, 1> forward("workspace", both.forward_size(exec)), backward("workspace", both.backward_size(exec));
  expect_stays_on_instance(exec, [&] { both.forward(exec, forward); });
  expect_stays_on_instance(exec, [&] { both.backward(exec, backward); });
  const std::array<AttentionState, 2> states{AttentionState{both.out, both.lse}, AttentionState{both.grad_out, both.lse}};
  const View<float, 4>                merged("merged", both.out.layout());
  expect_stays_on_instance(exec, [&] { Tributary::attention_merge(exec, states, merged, std::nullopt); });
}

TEST(AttentionWorkspace, BackwardNeedsNothingOfSizeQueriesTimesKeys) {
  const auto bytes = [](std::int64_t queries, std::int64_t keys) {
    const auto           rows = [](std::int64_t n) { return View<half_t, 3>("rows", n, 1, 8); };
    const View<float, 2> lse("lse", 1, queries);
    return Tributary::attention_backward_workspace_size(Space{}, rows(queries), rows(keys), rows(keys), rows(queries), lse, rows(queries),
                                                        rows(queries), rows(keys), rows(keys));
  };
  // Keys for every worker of a device.
  const std::size_t small = bytes(1 << 12, 1 << 18), more_queries = bytes(1 << 18, 1 << 18), more = bytes(1 << 18, 1 << 21);
  // The gradients of queries as sums, at most 64 floats a row, and some statistics; of keys only how far each block has come.
  EXPECT_LT(more_queries - small, std::size_t{1 << 18} * (64 + 4) * sizeof(float));
  EXPECT_LT(more - more_queries, std::size_t{1} << 20);
}

TEST(AttentionWorkspace, AnUnalignedOneWorks) {
  Random          random(74);
  const auto      in = rich_case<float>(random);
  const BothCalls both(in);
  const Space     exec;
  const auto      expected  = both.call.forward();
  const auto      upstream  = AttentionUpstream<float>{expected, both.call.empty_result().out, {}};
  const auto      gradients = both.call.backward(upstream);
  for (const std::size_t shift : {1, 3, 64}) {
    const auto inside = [&](std::size_t size) {
      return Kokkos::subview(View<std::byte, 1>("workspace", size + shift), Kokkos::pair(shift, size + shift));
    };
    both.forward(exec, inside(both.forward_size(exec)));
    both.backward(exec, inside(both.backward_size(exec)));
    EXPECT_TRUE(same_memory(from_space<4>(both.out).values, expected.out.values));
    EXPECT_TRUE(same_memory(from_space<4>(both.grad_query).values, gradients.query.values));
    EXPECT_TRUE(same_memory(from_space<4>(both.grad_key).values, gradients.key.values));
    EXPECT_TRUE(same_memory(from_space<4>(both.grad_value).values, gradients.value.values));
  }
}

TEST(AttentionWorkspace, OneTooSmallIsRefused) {
  Random            random(75);
  const BothCalls   both(rich_case<float>(random));
  const Space       exec;
  const std::size_t forward = both.forward_size(exec), backward = both.backward_size(exec);
  ASSERT_GT(forward, 0u);
  ASSERT_GT(backward, 0u);
  expect_refusal(
      [&] { both.forward(exec, View<std::byte, 1>("workspace", forward - 1)); },
      {"attention_forward: ", "workspace has " + std::to_string(forward - 1) + " bytes, expected at least " + std::to_string(forward)});
  expect_refusal(
      [&] { both.backward(exec, View<std::byte, 1>("workspace", backward - 1)); },
      {"attention_backward: ", "workspace has " + std::to_string(backward - 1) + " bytes, expected at least " + std::to_string(backward)});
}

TEST(AttentionWorkspace, ForwardNeedsNothingOfSizeQueriesTimesKeys) {
  for (const Level level : {Level::automatic, Level::portable}) {
    const auto bytes = [&](std::int64_t queries, std::int64_t keys) {
      const View<half_t, 3> query("query", queries, 1, 8), key("key", keys, 1, 8), out("out", queries, 1, 8);
      return Tributary::attention_forward_workspace_size(Space{}, query, key, key, out, std::nullopt, {.level = level});
    };
    // Queries for every worker of a device.  A worker holds a block of queries and a tile of keys, however many there are.
    const std::size_t small = bytes(1 << 18, 1 << 12), more_queries = bytes(1 << 20, 1 << 12), more = bytes(1 << 20, 1 << 18);
    EXPECT_EQ(more_queries, small);
    EXPECT_EQ(more, small);
  }
}

}  // namespace
}  // namespace TributaryTest
