#include "KokkosEvents.hpp"
#include "indexer/IndexerCase.hpp"

// What indexer_score and indexer_topk refuse.

namespace TributaryTest {
namespace {

using Tributary::KeyRange;
using Tributary::RatioCausal;

/// Correct arguments, of which each case spoils one: B 2, S 3, T 10, H 4, D 8, k 5.
template <class Element>
class IndexerArguments {
 public:
  View<Element, 4>      query{"query", 2, 3, 4, 8};
  View<Element, 3>      key{"key", 2, 10, 8};
  View<float, 3>        weights{"weights", 2, 3, 4};
  View<float, 3>        scores{"scores", 2, 3, 10};
  View<std::int32_t, 3> indices{"indices", 2, 3, 5};
  View<float, 3>        best{"best", 2, 3, 5};

  IndexerArguments() {
    Kokkos::deep_copy(scores, 7);
    Kokkos::deep_copy(indices, -7);
    Kokkos::deep_copy(best, 7);
  }
  void expect_untouched() const {
    EXPECT_TRUE(same_bits(from_space<3>(scores), Array<float, 3>({2, 3, 10}, 7)));
    EXPECT_TRUE(same_bits(from_space<3>(indices), Array<std::int32_t, 3>({2, 3, 5}, -7)));
    EXPECT_TRUE(same_bits(from_space<3>(best), Array<float, 3>({2, 3, 5}, 7)));
  }
};

/// Both operators refuse these inputs, each under its name.
template <class Outputs, class Query, class Key, class Weights>
void expect_inputs_refused(const Outputs& outputs, const Query& query, const Key& key, const Weights& weights,
                           const IndexerOptions& options, std::string_view part, std::string_view second_part = "") {
  expect_refusal([&] { Tributary::indexer_score(Space{}, query, key, weights, outputs.scores, options); },
                 {"Tributary: indexer_score: ", second_part, part});
  expect_refusal([&] { Tributary::indexer_score_workspace_size(Space{}, query, key, weights, outputs.scores, options); },
                 {"indexer_score: ", second_part, part});
  expect_refusal([&] { Tributary::indexer_topk(Space{}, query, key, weights, outputs.indices, outputs.best, options); },
                 {"Tributary: indexer_topk: ", second_part, part});
  expect_refusal([&] { Tributary::indexer_topk_workspace_size(Space{}, query, key, weights, outputs.indices, outputs.best, options); },
                 {"indexer_topk: ", second_part, part});
}

class IndexerErrors : public testing::Test {
 public:
  IndexerArguments<float> a;

  ~IndexerErrors() override { a.expect_untouched(); }

  void expect_options_refused(const IndexerOptions& options, std::string_view part, std::string_view second_part = "") const {
    expect_inputs_refused(a, a.query, a.key, a.weights, options, part, second_part);
  }
  template <class Scores>
  void expect_score_refused(const Scores& scores, const IndexerOptions& options, std::initializer_list<std::string_view> parts) const {
    expect_refusal([&] { Tributary::indexer_score(Space{}, a.query, a.key, a.weights, scores, options); }, parts);
  }
  template <class Indices, class Scores>
  void expect_topk_refused(const Indices& indices, const Scores& scores, const IndexerOptions& options,
                           std::initializer_list<std::string_view> parts) const {
    expect_refusal([&] { Tributary::indexer_topk(Space{}, a.query, a.key, a.weights, indices, scores, options); }, parts);
  }
};

TEST_F(IndexerErrors, MismatchedInputs) {
  expect_inputs_refused(a, a.query, View<float, 3>("key", 2, 10, 9), a.weights, {}, "key has 9 columns, query has head dimension 8");
  expect_inputs_refused(a, a.query, View<float, 3>("key", 3, 10, 8), a.weights, {}, "key has batch 3, query has batch 2");
  expect_inputs_refused(a, a.query, a.key, View<float, 3>("weights", 2, 3, 5), {}, "weights is [2, 3, 5], expected [2, 3, 4]");
  expect_inputs_refused(a, a.query, a.key, View<float, 3>("weights", 2, 4, 4), {}, "weights is [2, 4, 4], expected [2, 3, 4]");
  expect_inputs_refused(a, a.query, a.key, View<float, 3>("weights", 1, 3, 4), {}, "weights is [1, 3, 4], expected [2, 3, 4]");
  expect_inputs_refused(a, View<float, 4>("query", 2, 3, 0, 8), a.key, View<float, 3>("weights", 2, 3, 0), {},
                        "query has 0 heads, expected 1");
  expect_inputs_refused(a, View<float, 4>("query", 2, 3, 4, 0), View<float, 3>("key", 2, 10, 0), a.weights, {},
                        "head dimension is 0, expected 1");
}

TEST_F(IndexerErrors, MismatchedOutputs) {
  expect_score_refused(View<float, 3>("scores", 2, 3, 9), {}, {"indexer_score: scores is [2, 3, 9], expected [2, 3, 10]"});
  expect_score_refused(View<float, 3>("scores", 2, 4, 10), {}, {"indexer_score: scores is [2, 4, 10], expected [2, 3, 10]"});
  expect_score_refused(View<float, 3>("scores", 1, 3, 10), {}, {"indexer_score: scores is [1, 3, 10], expected [2, 3, 10]"});
  expect_topk_refused(View<std::int32_t, 3>("indices", 2, 4, 5), std::nullopt, {},
                      {"indexer_topk: indices is [2, 4, 5], expected [2, 3, 5]"});
  expect_topk_refused(View<std::int32_t, 3>("indices", 1, 3, 5), std::nullopt, {},
                      {"indexer_topk: indices is [1, 3, 5], expected [2, 3, 5]"});
  expect_topk_refused(a.indices, View<float, 3>("scores", 2, 3, 6), {}, {"indexer_topk: scores is [2, 3, 6], indices is [2, 3, 5]"});
  expect_topk_refused(View<std::int32_t, 3>("indices", 2, 3, 0), std::nullopt, {},
                      {"indexer_topk: k, the last extent of indices, is 0, expected 1 or more"});
}

TEST_F(IndexerErrors, Masks) {
  expect_options_refused({.legal_keys = RatioCausal{.ratio = 0}}, "RatioCausal::ratio is 0, expected 1 or more");
  expect_options_refused({.legal_keys = RatioCausal{.ratio = -4}}, "RatioCausal::ratio is -4, expected 1 or more");
  expect_options_refused({.legal_keys = RatioCausal{.query_offset = -1}}, "RatioCausal::query_offset is -1, expected 0 or more");
  expect_options_refused({.legal_keys = KeyRange{}}, "KeyRange without its range");
  const View<std::int32_t, 1> three("offsets", 3);
  expect_options_refused({.legal_keys = RatioCausal{.query_offsets = three}}, "query_offsets is [3], expected [2]");
  const View<std::int32_t, 3> columns("range", 2, 3, 3), rows("range", 2, 4, 2);
  const View<std::int32_t, 2> no_batch("range", 3, 2);
  expect_options_refused({.legal_keys = KeyRange{columns}}, "range is [2, 3, 3], expected [2, 3, 2]");
  expect_options_refused({.legal_keys = KeyRange{rows}}, "range is [2, 4, 2], expected [2, 3, 2]");
  expect_options_refused({.legal_keys = KeyRange{no_batch}}, "range is [1, 3, 2], expected [2, 3, 2]");
}

TEST_F(IndexerErrors, PackedSequences) {
  const View<std::int32_t, 1> none("none", 0), two("two", 2), three("three", 3);
  expect_options_refused({.sequences = {.cu_seqlens_q = two}}, "packed sequences need both cu_seqlens_q and cu_seqlens_k");
  expect_options_refused({.sequences = {.cu_seqlens_k = two}}, "packed sequences need both cu_seqlens_q and cu_seqlens_k");
  expect_options_refused({.sequences = {.cu_seqlens_q = two, .cu_seqlens_k = two}}, "the batch is 2", "packed sequences");
  const View<float, 3> query("query", 3, 4, 8);
  const auto           refused = [&](const IndexerOptions& options, std::initializer_list<std::string_view> parts) {
    expect_refusal(
        [&] {
          Tributary::indexer_topk(Space{}, query, View<float, 2>("key", 10, 8), View<float, 2>("weights", 3, 4),
                                            View<std::int32_t, 2>("indices", 3, 5), std::nullopt, options);
        },
        parts);
  };
  refused({.sequences = {.cu_seqlens_q = none, .cu_seqlens_k = none}}, {"indexer_topk: cu_seqlens_q is empty"});
  refused({.sequences = {.cu_seqlens_q = two, .cu_seqlens_k = three}}, {"indexer_topk: cu_seqlens_q has 2 entries, cu_seqlens_k has 3"});
  refused({.legal_keys = RatioCausal{.query_offsets = three}, .sequences = {.cu_seqlens_q = three, .cu_seqlens_k = three}},
          {"indexer_topk: query_offsets is [3], expected [2]"});
}

TEST_F(IndexerErrors, Scales) {
  const View<float, 3> query_scale("query_scale", 2, 3, 4);
  const View<float, 2> key_scale("key_scale", 2, 10);
  expect_options_refused({.query_scale = query_scale}, "query_scale and key_scale go with float8_e4m3 inputs only");
  expect_options_refused({.key_scale = key_scale}, "query_scale and key_scale go with float8_e4m3 inputs only");
  const IndexerArguments<float8_e4m3_t> b;
  const auto                            refused = [&](const IndexerOptions& options, std::string_view part) {
    expect_inputs_refused(b, b.query, b.key, b.weights, options, part);
  };
  refused({}, "float8_e4m3 inputs need query_scale and key_scale");
  refused({.query_scale = query_scale}, "float8_e4m3 inputs need query_scale and key_scale");
  refused({.key_scale = key_scale}, "float8_e4m3 inputs need query_scale and key_scale");
  const View<float, 3> five_heads("query_scale", 2, 3, 5);
  const View<float, 1> no_batch("key_scale", 10);
  const View<float, 2> eleven("key_scale", 2, 11);
  refused({.query_scale = five_heads, .key_scale = key_scale}, "query_scale is [2, 3, 5], expected [2, 3, 4]");
  refused({.query_scale = query_scale, .key_scale = no_batch}, "key_scale is [1, 10], expected [2, 10]");
  refused({.query_scale = query_scale, .key_scale = eleven}, "key_scale is [2, 11], expected [2, 10]");
  b.expect_untouched();
}

TEST_F(IndexerErrors, OptionsOutOfRange) {
  expect_options_refused({.chunk_queries = -1}, "chunk_queries is -1, expected 0");
  expect_options_refused({.chunk_queries = std::int64_t{1} << 33}, "chunk_queries is 8589934592, expected 0");
  expect_options_refused({.chunk_keys = -1}, "chunk_keys is -1, expected 0");
  expect_options_refused({.chunk_keys = std::int64_t{1} << 33}, "chunk_keys is 8589934592, expected 0");
  expect_options_refused({.key_splits = -1}, "key_splits is -1, expected 0");
  expect_options_refused({.key_splits = std::int64_t{1} << 33}, "key_splits is 8589934592, expected 0");
  expect_options_refused({.level = Level::hopper}, "no Hopper level");
}

TEST_F(IndexerErrors, RowsThatAreNotContiguous) {
  using Strided = Kokkos::View<float***, Kokkos::LayoutStride, Memory>;
  expect_inputs_refused(a, Kokkos::View<float****, Kokkos::LayoutStride, Memory>("query", Kokkos::LayoutStride(2, 96, 3, 32, 4, 1, 8, 4)),
                        a.key, a.weights, {}, "the last dimension of query has stride 4, expected 1");
  expect_inputs_refused(a, a.query, Strided("key", Kokkos::LayoutStride(2, 80, 10, 1, 8, 10)), a.weights, {},
                        "the last dimension of key has stride 10, expected 1");
  expect_inputs_refused(a, a.query, a.key, Strided("weights", Kokkos::LayoutStride(2, 1, 3, 2, 4, 6)), {},
                        "the last dimension of weights has stride 6, expected 1");
  expect_score_refused(Strided("scores", Kokkos::LayoutStride(2, 1, 3, 2, 10, 6)), {},
                       {"indexer_score: the last dimension of scores has stride 6, expected 1"});
  expect_topk_refused(a.indices, Strided("scores", Kokkos::LayoutStride(2, 1, 3, 2, 5, 6)), {},
                      {"indexer_topk: the last dimension of scores has stride 6, expected 1"});
}

template <class T, int Rank, class... Extents>
auto view_of(void* memory, Extents... extents) {
  return Kokkos::View<typename Pointers<T, Rank>::type, Kokkos::LayoutRight, Memory>(static_cast<T*>(memory),
                                                                                     static_cast<std::size_t>(extents)...);
}

TEST_F(IndexerErrors, OutputsThatOverlap) {
  expect_score_refused(view_of<float, 3>(a.query.data(), 2, 3, 10), {}, {"indexer_score: scores overlaps query"});
  expect_score_refused(view_of<float, 3>(a.key.data() + 159, 2, 3, 10), {}, {"indexer_score: scores overlaps key"});
  expect_score_refused(view_of<float, 3>(a.weights.data() + 23, 2, 3, 10), {}, {"indexer_score: scores overlaps weights"});
  expect_topk_refused(view_of<std::int32_t, 3>(a.query.data() + 191, 2, 3, 5), std::nullopt, {}, {"indexer_topk: indices overlaps query"});
  expect_topk_refused(a.indices, view_of<float, 3>(a.key.data(), 2, 3, 5), {}, {"indexer_topk: scores overlaps key"});
  expect_topk_refused(a.indices, view_of<float, 3>(a.weights.data(), 2, 3, 5), {}, {"indexer_topk: scores overlaps weights"});
  expect_topk_refused(a.indices, view_of<float, 3>(a.indices.data() + 29, 2, 3, 5), {}, {"indexer_topk: scores overlaps indices"});
  const View<std::int32_t, 3> range("range", 2, 3, 2);
  expect_topk_refused(view_of<std::int32_t, 3>(range.data() + 11, 2, 3, 5), std::nullopt, {.legal_keys = KeyRange{range}},
                      {"indexer_topk: indices overlaps range"});
  const View<std::int32_t, 1> offsets("offsets", 2);
  expect_topk_refused(view_of<std::int32_t, 3>(offsets.data(), 2, 3, 5), std::nullopt,
                      {.legal_keys = RatioCausal{.query_offsets = offsets}}, {"indexer_topk: indices overlaps query_offsets"});
}

TEST_F(IndexerErrors, OutputsThatOverlapScalesOrSequences) {
  const IndexerArguments<float8_e4m3_t> b;
  const View<float, 3>                  query_scale("query_scale", 2, 3, 4);
  const View<float, 2>                  key_scale("key_scale", 2, 10);
  const IndexerOptions                  scales{.query_scale = query_scale, .key_scale = key_scale};
  expect_refusal(
      [&] { Tributary::indexer_score(Space{}, b.query, b.key, b.weights, view_of<float, 3>(query_scale.data(), 2, 3, 10), scales); },
      {"indexer_score: scores overlaps query_scale"});
  expect_refusal(
      [&] { Tributary::indexer_score(Space{}, b.query, b.key, b.weights, view_of<float, 3>(key_scale.data() + 19, 2, 3, 10), scales); },
      {"indexer_score: scores overlaps key_scale"});
  const View<std::int32_t, 1> q("q", 2), k("k", 2);
  const auto                  query   = Kokkos::subview(a.query, 0, Kokkos::ALL, Kokkos::ALL, Kokkos::ALL);
  const auto                  key     = Kokkos::subview(a.key, 0, Kokkos::ALL, Kokkos::ALL);
  const auto                  weights = Kokkos::subview(a.weights, 0, Kokkos::ALL, Kokkos::ALL);
  const IndexerOptions        packed{.sequences = {.cu_seqlens_q = q, .cu_seqlens_k = k}};
  expect_refusal(
      [&] { Tributary::indexer_topk(Space{}, query, key, weights, view_of<std::int32_t, 2>(q.data(), 3, 5), std::nullopt, packed); },
      {"indexer_topk: indices overlaps cu_seqlens_q"});
  expect_refusal(
      [&] { Tributary::indexer_topk(Space{}, query, key, weights, view_of<std::int32_t, 2>(k.data(), 3, 5), std::nullopt, packed); },
      {"indexer_topk: indices overlaps cu_seqlens_k"});
}

TEST_F(IndexerErrors, OutputsWithRepeatedElements) {
  using Strided = Kokkos::View<float***, Kokkos::LayoutStride, Memory>;
  expect_score_refused(Strided("scores", Kokkos::LayoutStride(2, 30, 3, 0, 10, 1)), {},
                       {"indexer_score: scores has stride 0 in dimension 1"});
  expect_topk_refused(a.indices, Strided("scores", Kokkos::LayoutStride(2, 0, 3, 5, 5, 1)), {},
                      {"indexer_topk: scores has stride 0 in dimension 0"});
}

TEST_F(IndexerErrors, WorkspaceTooSmall) {
  const std::size_t        score_size = Tributary::indexer_score_workspace_size(Space{}, a.query, a.key, a.weights, a.scores);
  const std::size_t        topk_size  = Tributary::indexer_topk_workspace_size(Space{}, a.query, a.key, a.weights, a.indices, a.best);
  const View<std::byte, 1> score_workspace("workspace", score_size - 1), topk_workspace("workspace", topk_size - 1);
  expect_refusal(
      [&] { Tributary::indexer_score(Space{}, a.query, a.key, a.weights, a.scores, {}, score_workspace); },
      {"indexer_score: ", "workspace has " + std::to_string(score_size - 1) + " bytes", "expected at least " + std::to_string(score_size)});
  expect_refusal(
      [&] { Tributary::indexer_topk(Space{}, a.query, a.key, a.weights, a.indices, a.best, {}, topk_workspace); },
      {"indexer_topk: ", "workspace has " + std::to_string(topk_size - 1) + " bytes", "expected at least " + std::to_string(topk_size)});
}

TEST_F(IndexerErrors, MemoryThatTheReferenceLevelCannotReach) {
  if (on_host) GTEST_SKIP() << "the host reaches this space's memory";
  expect_options_refused({.level = Level::reference}, "reference level");
}

}  // namespace
}  // namespace TributaryTest
