#include "attention/AttentionCase.hpp"

// What attention_forward, attention_backward and attention_merge refuse.

namespace TributaryTest {
namespace {

template <class T, int Rank, class... Extents>
auto view_of(void* memory, Extents... extents) {
  return Kokkos::View<typename Pointers<T, Rank>::type, Kokkos::LayoutRight, Memory>(static_cast<T*>(memory),
                                                                                     static_cast<std::size_t>(extents)...);
}

/// Correct arguments, of which each case spoils one: B 2, Sq 3, Sk 10, Hq 4, Hkv 2, D 8, Dv 6.
class AttentionErrors : public testing::Test {
 public:
  View<float, 4> query{"query", 2, 3, 4, 8}, key{"key", 2, 10, 2, 8}, value{"value", 2, 10, 2, 6}, out{"out", 2, 3, 4, 6},
      grad_out{"grad_out", 2, 3, 4, 6}, grad_query{"grad_query", 2, 3, 4, 8}, grad_key{"grad_key", 2, 10, 2, 8},
      grad_value{"grad_value", 2, 10, 2, 6};
  View<float, 3> lse{"lse", 2, 4, 3};

  using Parts = std::initializer_list<std::string_view>;

  template <class Query, class Key, class Value>
  void expect_inputs_refused(const Query& q, const Key& k, const Value& v, const AttentionOptions& options, std::string_view part) const {
    expect_refusal([&] { Tributary::attention_forward(Space{}, q, k, v, out, lse, options); }, {"Tributary: attention_forward: ", part});
    expect_refusal([&] { Tributary::attention_forward_workspace_size(Space{}, q, k, v, out, lse, options); },
                   {"Tributary: attention_forward: ", part});
    expect_refusal([&] { Tributary::attention_backward(Space{}, q, k, v, out, lse, grad_out, grad_query, grad_key, grad_value, options); },
                   {"Tributary: attention_backward: ", part});
    expect_refusal(
        [&] {
          Tributary::attention_backward_workspace_size(Space{}, q, k, v, out, lse, grad_out, grad_query, grad_key, grad_value, options);
        },
        {"Tributary: attention_backward: ", part});
  }
  void expect_options_refused(const AttentionOptions& options, std::string_view part) const {
    expect_inputs_refused(query, key, value, options, part);
  }
  template <class Out, class Lse>
  void expect_forward_refused(const Out& o, const Lse& l, const AttentionOptions& options, Parts parts) const {
    expect_refusal([&] { Tributary::attention_forward(Space{}, query, key, value, o, l, options); }, parts);
  }
  void expect_gradients_refused(const AttentionOptions& options, const AttentionGradients& gradients, std::string_view part) const {
    expect_refusal(
        [&] {
          Tributary::attention_backward(Space{}, query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options,
                                        gradients);
        },
        {"Tributary: attention_backward: ", part});
  }
  template <class Out, class Lse, class GradOut, class GradQuery, class GradKey, class GradValue>
  void expect_backward_refused(const Out& o, const Lse& l, const GradOut& go, const GradQuery& gq, const GradKey& gk, const GradValue& gv,
                               std::string_view part) const {
    expect_refusal([&] { Tributary::attention_backward(Space{}, query, key, value, o, l, go, gq, gk, gv); },
                   {"Tributary: attention_backward: ", part});
  }
};

TEST_F(AttentionErrors, MismatchedInputs) {
  expect_inputs_refused(query, View<float, 4>("key", 2, 10, 2, 9), value, {}, "key has head dimension 9, query has 8");
  expect_inputs_refused(query, View<float, 4>("key", 3, 10, 2, 8), value, {}, "key has batch 3, query has batch 2");
  expect_inputs_refused(query, key, View<float, 4>("value", 2, 11, 2, 6), {}, "value is [2, 11, 2, 6], expected [2, 10, 2, 6]");
  expect_inputs_refused(query, key, View<float, 4>("value", 2, 10, 4, 6), {}, "value is [2, 10, 4, 6], expected [2, 10, 2, 6]");
  expect_inputs_refused(query, key, View<float, 4>("value", 1, 10, 2, 6), {}, "value is [1, 10, 2, 6], expected [2, 10, 2, 6]");
  expect_inputs_refused(query, key, View<float, 4>("value", 2, 10, 2, 0), {}, "value has head dimension 0, expected 1");
  expect_inputs_refused(query, View<float, 4>("key", 2, 10, 3, 8), View<float, 4>("value", 2, 10, 3, 6), {},
                        "query has 4 heads, expected a multiple of the 3 key heads");
  expect_inputs_refused(query, View<float, 4>("key", 2, 10, 0, 8), View<float, 4>("value", 2, 10, 0, 6), {},
                        "query has 4 heads, expected a multiple of the 0 key heads");
  expect_inputs_refused(View<float, 4>("query", 2, 3, 0, 8), key, value, {}, "query has 0 heads, expected 1");
  expect_inputs_refused(View<float, 4>("query", 2, 3, 4, 0), View<float, 4>("key", 2, 10, 2, 0), value, {},
                        "the head dimension is 0, expected 1");
}

TEST_F(AttentionErrors, MismatchedOutputs) {
  expect_forward_refused(View<float, 4>("out", 2, 3, 4, 8), lse, {}, {"attention_forward: out is [2, 3, 4, 8], expected [2, 3, 4, 6]"});
  expect_forward_refused(View<float, 4>("out", 1, 3, 4, 6), lse, {}, {"attention_forward: out is [1, 3, 4, 6], expected [2, 3, 4, 6]"});
  expect_forward_refused(out, View<float, 3>("lse", 2, 3, 4), {}, {"attention_forward: lse is [2, 3, 4], expected [2, 4, 3]"});
  const View<float, 4> wrong("wrong", 2, 3, 5, 6);
  expect_backward_refused(wrong, lse, grad_out, grad_query, grad_key, grad_value, "out is [2, 3, 5, 6], expected [2, 3, 4, 6]");
  expect_backward_refused(out, View<float, 3>("lse", 2, 4, 4), grad_out, grad_query, grad_key, grad_value,
                          "lse is [2, 4, 4], expected [2, 4, 3]");
  expect_backward_refused(out, lse, wrong, grad_query, grad_key, grad_value, "grad_out is [2, 3, 5, 6], expected [2, 3, 4, 6]");
  expect_backward_refused(out, lse, grad_out, wrong, grad_key, grad_value, "grad_query is [2, 3, 5, 6], expected [2, 3, 4, 8]");
  expect_backward_refused(out, lse, grad_out, grad_query, wrong, grad_value, "grad_key is [2, 3, 5, 6], expected [2, 10, 2, 8]");
  expect_backward_refused(out, lse, grad_out, grad_query, grad_key, wrong, "grad_value is [2, 3, 5, 6], expected [2, 10, 2, 6]");
}

TEST_F(AttentionErrors, NumbersOutOfRange) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect_options_refused({.scale = nan}, "scale is nan, expected a finite number");
  expect_options_refused({.scale = infinite}, "scale is inf, expected a finite number");
  expect_options_refused({.softcap = nan}, "softcap is nan, expected 0 (none) or a positive finite number");
  expect_options_refused({.softcap = -1}, "softcap is -1.000000, expected 0 (none)");
  expect_options_refused({.softcap = infinite}, "softcap is inf, expected 0 (none)");
  expect_options_refused({.window_left = -2}, "window_left is -2, expected -1 (no limit) or more");
  expect_options_refused({.window_right = -7}, "window_right is -7, expected -1 (no limit) or more");
  expect_options_refused({.dropout = {.probability = -0.1}}, "dropout.probability is -0.100000, expected 0 ... 1");
  expect_options_refused({.dropout = {.probability = 1.5}}, "dropout.probability is 1.500000, expected 0 ... 1");
  expect_options_refused({.dropout = {.probability = static_cast<double>(nan)}}, "dropout.probability is nan, expected 0 ... 1");
  expect_options_refused({.level = Level::hopper}, "no Hopper level");
}

TEST_F(AttentionErrors, Masks) {
  const View<std::uint8_t, 2> short_keep("key_keep", 2, 9), one_batch("key_keep", 1, 10);
  expect_options_refused({.key_keep = short_keep}, "key_keep is [2, 9], expected [2, 10]");
  expect_options_refused({.key_keep = one_batch}, "key_keep is [1, 10], expected [2, 10]");
  const View<std::uint8_t, 4> keys("keep", 2, 4, 3, 9), rows("keep", 2, 4, 2, 10);
  expect_options_refused({.keep = keys}, "keep is [2, 4, 3, 9], expected [2, 4, 3, 10] or 1 in place of any but the last");
  expect_options_refused({.keep = rows}, "keep is [2, 4, 2, 10], expected [2, 4, 3, 10]");
  const View<float, 4> heads("mask", 2, 2, 3, 10), batch("mask", 3, 4, 3, 10), one_key("mask", 2, 4, 3, 1);
  expect_options_refused({.additive_mask = heads}, "additive_mask is [2, 2, 3, 10], expected [2, 4, 3, 10]");
  expect_options_refused({.additive_mask = batch}, "additive_mask is [3, 4, 3, 10], expected [2, 4, 3, 10]");
  expect_options_refused({.additive_mask = one_key}, "additive_mask is [2, 4, 3, 1], expected [2, 4, 3, 10]");
}

TEST_F(AttentionErrors, Biases) {
  const View<float, 1> three("three", 3);
  const View<float, 2> sequences("slopes", 3, 4), heads("slopes", 2, 5);
  expect_options_refused({.alibi_slopes = three}, "alibi_slopes is [1, 3], expected [4] or [2, 4]");
  expect_options_refused({.alibi_slopes = sequences}, "alibi_slopes is [3, 4], expected [4] or [2, 4]");
  expect_options_refused({.alibi_slopes = heads}, "alibi_slopes is [2, 5], expected [4] or [2, 4]");
  expect_options_refused({.sink = three}, "sink is [3], expected [4]");
  const View<float, 2> wrong("table", 32, 5), one("table", 1, 4), odd("table", 7, 4), many("table", 1026, 4), table("table", 32, 4);
  expect_options_refused({.relative_bias = {.table = wrong}}, "relative_bias.table is [32, 5], expected [32, 4]");
  expect_options_refused({.relative_bias = {.table = one}}, "relative_bias.table has 1 buckets, expected 2 ... 1024");
  expect_options_refused({.relative_bias = {.table = many}}, "relative_bias.table has 1026 buckets, expected 2 ... 1024");
  expect_options_refused({.relative_bias = {.table = odd}}, "relative_bias.table has 7 buckets, expected an even number");
  expect_options_refused({.relative_bias = {.table = table, .max_distance = 8}},
                         "relative_bias.max_distance is 8, expected more than the 8 buckets");
  expect_options_refused({.relative_bias = {.table = table, .max_distance = 16, .bidirectional = false}},
                         "relative_bias.max_distance is 16, expected more than the 16 buckets");
}

TEST_F(AttentionErrors, Rotary) {
  expect_options_refused({.rotary = {.dims = 3}}, "rotary.dims is 3, expected an even number from 0 to 8");
  expect_options_refused({.rotary = {.dims = 10}}, "rotary.dims is 10, expected an even number from 0 to 8");
  expect_options_refused({.rotary = {.dims = -2}}, "rotary.dims is -2, expected an even number from 0 to 8");
  expect_options_refused({.rotary = {.dims = 4, .base = 0}}, "rotary.base is 0.000000, expected a positive finite number");
  expect_options_refused({.rotary = {.dims = 4, .base = HUGE_VAL}}, "rotary.base is inf, expected a positive finite number");
  const View<float, 2>        table("table", 20, 2), wide("table", 20, 3), shorter("table", 19, 2), empty("table", 0, 2);
  const View<std::int32_t, 1> three("positions", 3), ten("positions", 10);
  const View<std::int32_t, 2> batch("positions", 3, 10);
  expect_options_refused({.rotary = {.cosine = table, .sine = table}}, "rotary.cosine is given, but rotary.dims is 0");
  expect_options_refused({.rotary = {.query_positions = three}}, "rotary.query_positions is given, but rotary.dims is 0");
  expect_options_refused({.rotary = {.dims = 4, .cosine = table}}, "rotary.cosine is given without rotary.sine");
  expect_options_refused({.rotary = {.dims = 4, .sine = table}}, "rotary.sine is given without rotary.cosine");
  expect_options_refused({.rotary = {.dims = 4, .cosine = wide, .sine = wide}}, "rotary.cosine is [20, 3], expected [20, 2]");
  expect_options_refused({.rotary = {.dims = 4, .cosine = table, .sine = shorter}}, "rotary.sine is [19, 2], expected [20, 2]");
  expect_options_refused({.rotary = {.dims = 4, .cosine = empty, .sine = empty}}, "rotary.cosine has no position, expected 1 or more");
  expect_options_refused({.rotary = {.dims = 4, .query_positions = ten}}, "rotary.query_positions is [1, 10], expected [3] or [2, 3]");
  expect_options_refused({.rotary = {.dims = 4, .key_positions = three}}, "rotary.key_positions is [1, 3], expected [10] or [2, 10]");
  expect_options_refused({.rotary = {.dims = 4, .key_positions = batch}}, "rotary.key_positions is [3, 10], expected [10] or [2, 10]");
}

TEST_F(AttentionErrors, PackedSequences) {
  const View<std::int32_t, 1> none("none", 0), two("two", 2), three("three", 3);
  expect_options_refused({.sequences = {.cu_seqlens_q = two}}, "packed sequences need both cu_seqlens_q and cu_seqlens_k");
  expect_options_refused({.sequences = {.cu_seqlens_k = two}}, "packed sequences need both cu_seqlens_q and cu_seqlens_k");
  expect_options_refused({.sequences = {.cu_seqlens_q = two, .cu_seqlens_k = two}},
                         "packed sequences go with query [S,H,D], key and value [T,H,D]; the batch is 2");
  const View<float, 3> q("query", 3, 4, 8), k("key", 10, 2, 8), v("value", 10, 2, 6);
  expect_inputs_refused(q, k, v, {.sequences = {.cu_seqlens_q = none, .cu_seqlens_k = none}},
                        "cu_seqlens_q is empty, expected sequences + 1 entries");
  expect_inputs_refused(q, k, v, {.sequences = {.cu_seqlens_q = two, .cu_seqlens_k = three}},
                        "cu_seqlens_q has 2 entries, cu_seqlens_k has 3");
  const View<float, 2> slopes("slopes", 3, 4);
  expect_inputs_refused(q, k, v, {.alibi_slopes = slopes, .sequences = {.cu_seqlens_q = three, .cu_seqlens_k = three}},
                        "alibi_slopes is [3, 4], expected [4] or [2, 4]");
  const View<std::uint8_t, 4> keep("keep", 1, 4, 2, 99);
  expect_inputs_refused(q, k, v, {.keep = keep, .sequences = {.cu_seqlens_q = three, .cu_seqlens_k = three}},
                        "keep is [1, 4, 2, 99], expected [1, 4, 3, 99]");
}

TEST_F(AttentionErrors, Previous) {
  const View<float, 4> previous_out("previous", 2, 3, 4, 6), wide("previous", 2, 3, 4, 7);
  const View<float, 3> previous_lse("previous", 2, 4, 3), turned("previous", 2, 3, 4);
  expect_forward_refused(out, lse, {.previous = {.out = previous_out}}, {"attention_forward: previous.out is given without previous.lse"});
  expect_forward_refused(out, lse, {.previous = {.lse = previous_lse}}, {"attention_forward: previous.lse is given without previous.out"});
  expect_forward_refused(out, lse, {.previous = {.out = wide, .lse = previous_lse}},
                         {"attention_forward: previous.out is [2, 3, 4, 7], expected [2, 3, 4, 6]"});
  expect_forward_refused(out, lse, {.previous = {.out = previous_out, .lse = turned}},
                         {"attention_forward: previous.lse is [2, 3, 4], expected [2, 4, 3]"});
  expect_forward_refused(previous_out, lse, {.previous = {.out = previous_out, .lse = previous_lse}},
                         {"attention_forward: out overlaps previous.out"});
  expect_forward_refused(out, previous_lse, {.previous = {.out = previous_out, .lse = previous_lse}},
                         {"attention_forward: lse overlaps previous.lse"});
  const View<float, 2> slopes("slopes", 2, 4);
  for (AttentionOptions options : {AttentionOptions{.causal = true},
                                   {.window_left = 3},
                                   {.alibi_slopes = slopes},
                                   {.rotary = {.dims = 2}},
                                   {.dropout = {.probability = 0.5}}}) {
    options.previous = {.out = previous_out, .lse = previous_lse};
    expect_forward_refused(out, lse, options, {"attention_forward: previous is given together with ", "expected a query_offset"});
    options.query_offset = 7;
    Tributary::attention_forward(Space{}, query, key, value, out, lse, options);
  }
  expect_gradients_refused({.previous = {.out = previous_out, .lse = previous_lse}}, {},
                           "previous is given, which goes with attention_forward only");
}

TEST_F(AttentionErrors, Offsets) {
  constexpr std::int64_t most = std::int64_t{1} << 31;
  expect_options_refused({.key_offset = 4}, "key_offset is 4, but query_offset is not given");
  expect_options_refused({.query_offset = -most - 1}, "query_offset is -2147483649, expected -2^31 ... 2147483645");
  expect_options_refused({.query_offset = most - 2}, "query_offset is 2147483646, expected -2^31 ... 2147483645");
  expect_options_refused({.query_offset = 0, .key_offset = -1}, "key_offset is -1, expected 0 ... 2147483638");
  expect_options_refused({.query_offset = 0, .key_offset = most - 9}, "key_offset is 2147483639, expected 0 ... 2147483638");
  const View<std::int32_t, 1> two("two", 2);
  const View<float, 3>        q("query", 3, 4, 8), k("key", 10, 2, 8), v("value", 10, 2, 6);
  expect_inputs_refused(q, k, v, {.query_offset = 0, .sequences = {.cu_seqlens_q = two, .cu_seqlens_k = two}},
                        "query_offset is given together with packed sequences");
}

TEST_F(AttentionErrors, OptionsWithStridedRows) {
  using Strided1 = Kokkos::View<float*, Kokkos::LayoutStride, Memory>;
  using Strided2 = Kokkos::View<std::uint8_t**, Kokkos::LayoutStride, Memory>;
  using Strided4 = Kokkos::View<float****, Kokkos::LayoutStride, Memory>;
  const Strided1 sink("the caller's name", Kokkos::LayoutStride(4, 2));
  const Strided2 key_keep("", Kokkos::LayoutStride(2, 1, 10, 2));
  const Strided4 mask("", Kokkos::LayoutStride(1, 1, 1, 1, 3, 1, 10, 3));
  expect_options_refused({.key_keep = key_keep}, "the last dimension of key_keep has stride 2, expected 1");
  expect_options_refused({.additive_mask = mask}, "the last dimension of additive_mask has stride 3, expected 1");
  expect_options_refused({.sink = sink}, "the last dimension of sink has stride 2, expected 1");
  const View<float, 1> good_sink("sink", 4);
  expect_gradients_refused({.sink = good_sink}, {.sink = sink}, "the last dimension of the gradient of sink has stride 2, expected 1");
}

TEST_F(AttentionErrors, GradientsOfWhatIsNotGiven) {
  const View<float, 4> mask("mask", 1, 4, 1, 10), full("mask", 2, 4, 3, 10);
  const View<float, 2> slopes("slopes", 2, 4), table("table", 8, 4), larger("table", 16, 4);
  const View<float, 1> sink("sink", 4), slope("slope", 4);
  expect_gradients_refused({}, {.additive_mask = mask}, "the gradient of additive_mask is wanted, but additive_mask is not given");
  expect_gradients_refused({}, {.alibi_slopes = slopes}, "the gradient of alibi_slopes is wanted, but alibi_slopes is not given");
  expect_gradients_refused({}, {.relative_bias = table}, "the gradient of relative_bias is wanted, but relative_bias.table is not given");
  expect_gradients_refused({}, {.sink = sink}, "the gradient of sink is wanted, but sink is not given");
  expect_gradients_refused({.additive_mask = mask}, {.additive_mask = full},
                           "the gradient of additive_mask is [2, 4, 3, 10], expected [1, 4, 1, 10]");
  expect_gradients_refused({.alibi_slopes = slope}, {.alibi_slopes = slopes}, "the gradient of alibi_slopes is [2, 4], expected [1, 4]");
  expect_gradients_refused({.relative_bias = {.table = table}}, {.relative_bias = larger},
                           "the gradient of relative_bias is [16, 4], expected [8, 4]");
  expect_gradients_refused({}, {.lse = View<float, 3>("grad_lse", 2, 4, 4)}, "the gradient of lse is [2, 4, 4], expected [2, 4, 3]");
  expect_gradients_refused({.sink = sink}, {.sink = sink}, "the gradient of sink overlaps sink");
}

TEST_F(AttentionErrors, OutputsThatOverlap) {
  expect_forward_refused(view_of<float, 4>(query.data(), 2, 3, 4, 6), lse, {}, {"attention_forward: out overlaps query"});
  expect_forward_refused(view_of<float, 4>(key.data() + 100, 2, 3, 4, 6), lse, {}, {"attention_forward: out overlaps key"});
  expect_forward_refused(out, view_of<float, 3>(value.data(), 2, 4, 3), {}, {"attention_forward: lse overlaps value"});
  expect_forward_refused(out, view_of<float, 3>(out.data() + 10, 2, 4, 3), {}, {"attention_forward: lse overlaps out"});
  const View<float, 1> room("room", 24);
  const auto           sink = Kokkos::subview(room, Kokkos::pair(20, 24));
  expect_forward_refused(out, view_of<float, 3>(room.data(), 2, 4, 3), {.sink = sink}, {"attention_forward: lse overlaps sink"});
  expect_backward_refused(out, lse, grad_out, query, grad_key, grad_value, "grad_query overlaps query");
  expect_backward_refused(out, lse, grad_out, grad_query, grad_key, view_of<float, 4>(grad_key.data() + 1, 2, 10, 2, 6),
                          "grad_value overlaps grad_key");
  // rows between each other's, but for the last number of a row
  const View<float, 4> both("both", 2, 10, 2, 14);
  const auto           columns = [&](int first, int last) {
    return Kokkos::subview(both, Kokkos::ALL, Kokkos::ALL, Kokkos::ALL, Kokkos::pair(first, last));
  };
  expect_backward_refused(out, lse, grad_out, grad_query, columns(0, 8), columns(7, 13), "grad_value overlaps grad_key");
  // inputs that lie in an output
  const auto in_grad_query = view_of<float, 4>(grad_query.data() + 48, 2, 3, 4, 6);
  expect_backward_refused(out, lse, in_grad_query, grad_query, grad_key, grad_value, "grad_query overlaps grad_out");
  expect_backward_refused(in_grad_query, lse, grad_out, grad_query, grad_key, grad_value, "grad_query overlaps out");
  expect_backward_refused(out, view_of<float, 3>(grad_query.data(), 2, 4, 3), grad_out, grad_query, grad_key, grad_value,
                          "grad_query overlaps lse");
}

TEST_F(AttentionErrors, OutputsWithRepeatedElementsOrStridedRows) {
  using Strided4 = Kokkos::View<float****, Kokkos::LayoutStride, Memory>;
  expect_forward_refused(Strided4("out", Kokkos::LayoutStride(2, 72, 3, 0, 4, 6, 6, 1)), lse, {},
                         {"attention_forward: out has stride 0 in dimension 1"});
  expect_forward_refused(Strided4("out", Kokkos::LayoutStride(2, 72, 3, 24, 4, 1, 6, 4)), lse, {},
                         {"attention_forward: the last dimension of out has stride 4, expected 1"});
}

TEST_F(AttentionErrors, Merge) {
  const View<float, 4> state_out("state", 2, 3, 4, 6), wide("state", 2, 3, 4, 7), merged("merged", 2, 3, 4, 6);
  const View<float, 3> state_lse("state", 2, 4, 3), turned("state", 2, 3, 4), merged_lse("merged", 2, 4, 3);
  const View<float, 1> three("sink", 3), room("room", 24);
  const auto           four    = Kokkos::subview(room, Kokkos::pair(0, 4));
  const auto           refused = [&](const std::vector<AttentionState>& states, const auto& o, const auto& l,
                           const Tributary::AttentionMergeOptions& options, Parts parts) {
    expect_refusal([&] { Tributary::attention_merge(Space{}, std::span<const AttentionState>(states), o, l, options); }, parts);
  };
  const AttentionState state{state_out, state_lse};
  refused({}, merged, merged_lse, {}, {"attention_merge: 0 states are given, expected 1 ... 8"});
  refused(std::vector<AttentionState>(9, state), merged, merged_lse, {}, {"attention_merge: 9 states are given, expected 1 ... 8"});
  refused({state, {wide, state_lse}}, merged, merged_lse, {}, {"attention_merge: out of state 1 is [2, 3, 4, 7], expected [2, 3, 4, 6]"});
  refused({{state_out, turned}}, merged, merged_lse, {}, {"attention_merge: lse of state 0 is [2, 3, 4], expected [2, 4, 3]"});
  refused({{state_out, {}}}, merged, merged_lse, {}, {"attention_merge: lse of state 0 is [0, 0, 0], expected [2, 4, 3]"});
  refused({state}, merged, turned, {}, {"attention_merge: lse is [2, 3, 4], expected [2, 4, 3]"});
  refused({state}, merged, merged_lse, {.sink = three}, {"attention_merge: sink is [3], expected [4]"});
  refused({state}, merged, view_of<float, 3>(room.data(), 2, 4, 3), {.sink = four}, {"attention_merge: lse overlaps sink"});
  const View<float, 1> longer("longer", 145);
  const View<float, 1> longer_lse("longer", 25);
  refused({{view_of<float, 4>(longer.data() + 1, 2, 3, 4, 6), state_lse}}, view_of<float, 4>(longer.data(), 2, 3, 4, 6), merged_lse, {},
          {"attention_merge: out overlaps out of state 0"});
  refused({{state_out, view_of<float, 3>(longer_lse.data() + 1, 2, 4, 3)}}, merged, view_of<float, 3>(longer_lse.data(), 2, 4, 3), {},
          {"attention_merge: lse overlaps lse of state 0"});
  refused({state}, view_of<half_t, 4>(state_out.data(), 2, 3, 4, 6), merged_lse, {}, {"attention_merge: out overlaps out of state 0"});
  refused({state}, merged, view_of<float, 3>(merged.data(), 2, 4, 3), {}, {"attention_merge: lse overlaps out"});
  refused({state}, merged, merged_lse, {.level = Level::hopper}, {"attention_merge: ", "no Hopper level"});
}

TEST_F(AttentionErrors, MemoryThatTheReferenceLevelCannotReach) {
  if (on_host) GTEST_SKIP() << "the host reaches this space's memory";
  expect_options_refused({.level = Level::reference}, "reference level");
}

}  // namespace
}  // namespace TributaryTest
