#include "KokkosEvents.hpp"
#include "indexer/IndexerCase.hpp"

// What the indexer does to Kokkos: where it launches, what it allocates.

namespace TributaryTest {
namespace {

/// Views of one call; the values do not matter.
struct IndexerViews {
  View<float, 3>        query;
  View<float, 2>        key, weights, scores;
  View<std::int32_t, 2> indices;
  View<float, 2>        best;

  IndexerViews(std::int64_t queries, std::int64_t keys, std::int64_t heads, std::int64_t head_dim, std::int64_t top_k,
               bool with_scores = false)
      : query("query", queries, heads, head_dim),
        key("key", keys, head_dim),
        weights("weights", queries, heads),
        scores("scores", with_scores ? queries : 0, keys),
        indices("indices", queries, top_k),
        best("best", queries, top_k) {}

  std::size_t topk_workspace_size(const Space& exec, const IndexerOptions& options = {}) const {
    return Tributary::indexer_topk_workspace_size(exec, query, key, weights, indices, best, options);
  }
  std::size_t score_workspace_size(const Space& exec, const IndexerOptions& options = {}) const {
    return Tributary::indexer_score_workspace_size(exec, query, key, weights, scores, options);
  }
};

TEST(IndexerInstance, WithAWorkspaceOnlyTheCallersInstanceIsUsed) {
  const Space        exec = another_instance();
  const IndexerViews views(50, 700, 3, 16, 20, true);
  for (const std::int64_t splits : {1, 4}) {
    const IndexerOptions     options{.legal_keys = Tributary::RatioCausal{.ratio = 1, .query_offset = 650}, .key_splits = splits};
    const View<std::byte, 1> workspace("workspace", views.topk_workspace_size(exec, options));
    expect_stays_on_instance(
        exec, [&] { Tributary::indexer_topk(exec, views.query, views.key, views.weights, views.indices, views.best, options, workspace); });
  }
  const View<std::byte, 1> workspace("workspace", views.score_workspace_size(exec));
  expect_stays_on_instance(exec,
                           [&] { Tributary::indexer_score(exec, views.query, views.key, views.weights, views.scores, {}, workspace); });
}

TEST(IndexerInstance, ResultsOnAnotherInstanceAreTheSame) {
  Random                   random;
  const Space              exec = another_instance();
  const auto               in   = normal_inputs<float>(random, {1, 30, 400, 5, 24});
  const IndexerCall<float> call(Level::portable, in);
  Rows                     rows(1, 30, 16);
  const auto               indices = in_space(rows.indices);
  const auto               scores  = in_space(rows.scores);
  Tributary::indexer_topk(exec, call.query, call.key, call.weights, indices, scores, call.options);
  rows.indices = from_space<3>(indices);
  rows.scores  = from_space<3>(scores);
  EXPECT_TRUE(same_rows(rows, call.topk(16)));
}

/// Peak of what Kokkos allocates during a call without a workspace.
std::uint64_t peak_bytes(const IndexerViews& views, const IndexerOptions& options = {}) {
  const auto call = [&] { Tributary::indexer_topk(Space{}, views.query, views.key, views.weights, views.indices, views.best, options); };
  call();  // Kokkos allocates a launch's scratch when it first needs it
  KokkosEvents events;
  call();
  EXPECT_EQ(events.allocated_bytes, 0u) << "not all was freed";
  return events.peak_bytes;
}

TEST(IndexerMemory, TheShortOverloadAllocatesTheWorkspaceAndNoMore) {
  const IndexerViews views(70, 900, 4, 32, 64, true);
  EXPECT_EQ(peak_bytes(views), views.topk_workspace_size(Space{}));
  Tributary::indexer_score(Space{}, views.query, views.key, views.weights, views.scores);
  KokkosEvents events;
  Tributary::indexer_score(Space{}, views.query, views.key, views.weights, views.scores);
  EXPECT_EQ(events.peak_bytes, views.score_workspace_size(Space{}));
}

TEST(IndexerMemory, PeakDoesNotGrowWithTheKeys) {
  // k = 1, 64, 512: below the keys of the shorter call, and enough queries that every worker has some
  const std::int64_t queries = 8 * Space{}.concurrency() / (on_host ? 1 : 1024) + 8;
  for (const std::int64_t top_k : {1, 64, 512})
    EXPECT_EQ(peak_bytes({queries, 600, 2, 8, top_k}), peak_bytes({queries, 8 * 600, 2, 8, top_k})) << "k " << top_k;
}

TEST(IndexerMemory, PeakDoesNotGrowWithTheQueries) {
  const std::int64_t queries = 256 * (on_host ? Space{}.concurrency() : 64);
  const auto         bytes   = [](std::int64_t rows) { return IndexerViews(rows, 1000, 2, 8, 64).topk_workspace_size(Space{}); };
  EXPECT_EQ(bytes(queries), bytes(8 * queries));
}

TEST(IndexerMemory, PeakStaysBelowItsBound) {
  // A worker: 4 MiB of candidates and less of operands.  Far below the S x T scores of the usual way, 8192 x 65536 x 4 B = 2 GiB.
  const std::uint64_t a_worker = 8u << 20;
  const IndexerViews  views(8192, 65536, 16, 64, 512);
  const std::uint64_t workers =
      on_host ? static_cast<std::uint64_t>(Space{}.concurrency()) : static_cast<std::uint64_t>(Space{}.concurrency()) / 1024;
  EXPECT_LE(views.topk_workspace_size(Space{}), workers * a_worker);
  EXPECT_GT(views.topk_workspace_size(Space{}), 512u * sizeof(std::int64_t));
}

}  // namespace
}  // namespace TributaryTest
