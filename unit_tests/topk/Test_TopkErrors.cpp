#include "KokkosEvents.hpp"
#include "topk/TopkCase.hpp"

// What topk and topk_merge refuse, and what they do to Kokkos.

namespace TributaryTest {
namespace {

/// Correct arguments, of which each case spoils one.
class TopkErrors : public testing::Test {
 public:
  View<float, 3>        values{"values", 2, 3, 10};
  View<std::int32_t, 3> indices{"indices", 2, 3, 4};
  View<float, 3>        scores{"scores", 2, 3, 4};

  TopkErrors() {
    Kokkos::deep_copy(indices, -7);
    Kokkos::deep_copy(scores, 7);
  }
  ~TopkErrors() override {
    EXPECT_TRUE(same_bits(from_space<3>(indices), Array<std::int32_t, 3>({2, 3, 4}, -7))) << "indices were touched";
    EXPECT_TRUE(same_bits(from_space<3>(scores), Array<float, 3>({2, 3, 4}, 7))) << "scores were touched";
  }
  template <class Values, class Indices, class Scores>
  static void expect_refused(const Values& values, const Indices& indices, const Scores& scores, const TopkOptions& options,
                             std::initializer_list<std::string_view> parts) {
    expect_refusal([&] { Tributary::topk(Space{}, values, indices, scores, options); }, parts);
    expect_refusal([&] { Tributary::topk_workspace_size(Space{}, values, indices, scores, options); }, parts);
  }
};

TEST_F(TopkErrors, MismatchedExtents) {
  expect_refused(View<float, 3>("values", 1, 3, 10), indices, scores, {},
                 {"Tributary: topk: ", "indices is [2, 3, 4]", "values is [1, 3, 10]"});
  expect_refused(View<float, 3>("values", 2, 5, 10), indices, scores, {}, {"topk: ", "indices is [2, 3, 4]", "values is [2, 5, 10]"});
  expect_refused(values, indices, View<float, 3>("scores", 2, 3, 5), {}, {"topk: ", "scores is [2, 3, 5]", "indices is [2, 3, 4]"});
  expect_refused(values, indices, View<float, 3>("scores", 2, 2, 4), {}, {"topk: ", "scores is [2, 2, 4]"});
  expect_refused(values, indices, View<float, 2>("scores", 3, 4), {}, {"topk: ", "scores is [1, 3, 4]", "indices is [2, 3, 4]"});
  const View<std::int32_t, 3> three("range", 2, 3, 3), rows("range", 2, 2, 2), batch("range", 1, 3, 2);
  expect_refused(values, indices, scores, {.range = three}, {"topk: ", "range is [2, 3, 3]", "expected [2, 3, 2]"});
  expect_refused(values, indices, scores, {.range = rows}, {"topk: ", "range is [2, 2, 2]", "expected [2, 3, 2]"});
  expect_refused(values, indices, scores, {.range = batch}, {"topk: ", "range is [1, 3, 2]", "expected [2, 3, 2]"});
}

TEST_F(TopkErrors, NoK) {
  expect_refused(values, View<std::int32_t, 3>("indices", 2, 3, 0), View<float, 3>("scores", 2, 3, 0), {},
                 {"topk: ", "k", "indices", "is 0", "expected 1 or more"});
}

TEST_F(TopkErrors, OptionsOutOfRange) {
  expect_refused(values, indices, scores, {.chunk_keys = -1}, {"topk: ", "chunk_keys is -1", "expected 0"});
  expect_refused(values, indices, scores, {.chunk_keys = std::int64_t{1} << 40}, {"topk: ", "chunk_keys is 1099511627776"});
  expect_refused(values, indices, scores, {.key_splits = -3}, {"topk: ", "key_splits is -3", "expected 0"});
  expect_refused(values, indices, scores, {.key_splits = 1 << 20}, {"topk: ", "key_splits is 1048576"});
  if (hopper_levels().empty()) expect_refused(values, indices, scores, {.level = Level::hopper}, {"topk: ", "no Hopper level"});
}

TEST_F(TopkErrors, RowsThatAreNotContiguous) {
  const Kokkos::LayoutStride                                 transposed(2, 1, 3, 2, 10, 6);
  const Kokkos::View<float***, Kokkos::LayoutStride, Memory> strided("values", transposed);
  expect_refused(strided, indices, scores, {}, {"topk: ", "the last dimension of values has stride 6, expected 1"});
  const Kokkos::View<std::int32_t***, Kokkos::LayoutStride, Memory> range("range", Kokkos::LayoutStride(2, 1, 3, 2, 2, 6));
  expect_refusal([&] { Tributary::topk(Space{}, values, indices, scores, {.range = range}); }, {"range", "stride 6, expected 1"});
  const Kokkos::View<std::int32_t***, Kokkos::LayoutStride, Memory> out("out", Kokkos::LayoutStride(2, 1, 3, 2, 4, 6));
  expect_refused(values, out, scores, {}, {"topk: ", "the last dimension of indices has stride 6, expected 1"});
}

TEST_F(TopkErrors, ArraysThatOverlap) {
  const View<std::byte, 1> memory("memory", 4096);
  const auto               floats = [&](int offset, int columns) {
    return Kokkos::View<float***, Kokkos::LayoutRight, Memory>(reinterpret_cast<float*>(memory.data()) + offset, 2, 3, columns);
  };
  const auto ints = [&](int offset, int columns) {
    return Kokkos::View<std::int32_t***, Kokkos::LayoutRight, Memory>(reinterpret_cast<std::int32_t*>(memory.data()) + offset, 2, 3,
                                                                      columns);
  };
  expect_refused(floats(0, 10), ints(59, 4), scores, {}, {"topk: ", "indices overlaps values"});
  expect_refused(floats(20, 10), indices, floats(0, 4), {}, {"topk: ", "scores overlaps values"});
  expect_refused(values, ints(0, 4), floats(23, 4), {}, {"topk: ", "scores overlaps indices"});
  expect_refused(values, ints(0, 4), scores, {.range = ints(23, 2)}, {"topk: ", "indices overlaps range"});
  expect_refused(values, indices, floats(0, 4), {.range = ints(23, 2)}, {"topk: ", "scores overlaps range"});
  // side by side is no overlap
  Tributary::topk(Space{}, floats(0, 10), ints(60, 4), floats(84, 4), {.range = ints(108, 2)});
  Kokkos::fence();
}

TEST_F(TopkErrors, OutputsWithRepeatedElements) {
  const Kokkos::View<std::int32_t***, Kokkos::LayoutStride, Memory> repeated("indices", Kokkos::LayoutStride(2, 0, 3, 4, 4, 1));
  expect_refused(values, repeated, scores, {}, {"topk: ", "indices has stride 0 in dimension 0"});
}

TEST_F(TopkErrors, WorkspaceTooSmall) {
  for (const Level level : with_hopper({Level::portable})) {
    if (needs_another_device(level)) continue;
    const TopkOptions options{.level = level, .key_splits = 2};
    const std::size_t size = Tributary::topk_workspace_size(Space{}, values, indices, scores, options);
    ASSERT_GT(size, 0u);
    const View<std::byte, 1> workspace("workspace", size - 1);
    expect_refusal([&] { Tributary::topk(Space{}, values, indices, scores, options, workspace); },
                   {"topk: ", "workspace has " + std::to_string(size - 1) + " bytes", "expected at least " + std::to_string(size)});
  }
}

TEST_F(TopkErrors, MemoryThatTheReferenceLevelCannotReach) {
  if (on_host) GTEST_SKIP() << "the host reaches this space's memory";
  expect_refused(values, indices, scores, {.level = Level::reference}, {"topk: ", "reference level"});
}

class TopkMergeErrors : public TopkErrors {
 public:
  View<std::int32_t, 3> list_indices{"list_indices", 2, 3, 6};
  View<float, 3>        list_scores{"list_scores", 2, 3, 6};
  Tributary::TopkList   good{.indices = list_indices, .scores = list_scores};

  template <class Indices, class Scores>
  static void expect_refused(const std::vector<Tributary::TopkList>& lists, const Indices& indices, const Scores& scores,
                             const TopkMergeOptions& options, std::initializer_list<std::string_view> parts) {
    expect_refusal([&] { Tributary::topk_merge(Space{}, lists, indices, scores, options); }, parts);
    expect_refusal([&] { Tributary::topk_merge_workspace_size(Space{}, lists, indices, scores, options); }, parts);
  }
};

TEST_F(TopkMergeErrors, MismatchedExtents) {
  const View<float, 3> five("five", 2, 3, 5);
  expect_refused({good, {.indices = list_indices, .scores = five}}, indices, scores, {},
                 {"Tributary: topk_merge: list 1 has indices [2, 3, 6] and scores [2, 3, 5]"});
  expect_refused({good, {.indices = list_indices, .scores = {}}}, indices, scores, {}, {"topk_merge: list 1 has indices [2, 3, 6]"});
  const View<std::int32_t, 3> other_indices("other", 2, 4, 6);
  const View<float, 3>        other_scores("other", 2, 4, 6);
  expect_refused({{.indices = other_indices, .scores = other_scores}}, indices, scores, {},
                 {"topk_merge: list 0 is [2, 4, 6]", "[2, 3, 4]"});
  expect_refused({good}, indices, View<float, 3>("scores", 2, 3, 5), {}, {"topk_merge: ", "scores is [2, 3, 5]", "indices is [2, 3, 4]"});
}

TEST_F(TopkMergeErrors, NoListAndNoK) {
  expect_refused({}, indices, scores, {}, {"topk_merge: no list"});
  expect_refused({good}, View<std::int32_t, 3>("indices", 2, 3, 0), std::nullopt, {}, {"topk_merge: ", "k", "is 0", "expected 1 or more"});
}

TEST_F(TopkMergeErrors, HopperLevel) {
  if (!hopper_levels().empty()) GTEST_SKIP() << "this build has it";
  expect_refused({good}, indices, scores, {.level = Level::hopper}, {"topk_merge: ", "no Hopper level"});
}

TEST_F(TopkMergeErrors, OutputsThatOverlapAListOtherwiseThanAsThatList) {
  const auto first_four = Kokkos::subview(list_indices, Kokkos::ALL, Kokkos::ALL, Kokkos::pair(0, 4));
  expect_refused({good}, first_four, scores, {}, {"topk_merge: indices overlaps list 0"});
  const auto scores_four = Kokkos::subview(list_scores, Kokkos::ALL, Kokkos::ALL, Kokkos::pair(2, 6));
  expect_refused({good}, indices, scores_four, {}, {"topk_merge: scores overlaps list 0"});
  const Kokkos::View<float***, Kokkos::LayoutRight, Memory> as_scores(reinterpret_cast<float*>(list_indices.data()), 2, 3, 4);
  expect_refused({good}, indices, as_scores, {}, {"topk_merge: scores overlaps list 0"});
}

TEST_F(TopkMergeErrors, WorkspaceTooSmall) {
  const std::vector<Tributary::TopkList> lists = {good};
  const TopkMergeOptions                 options{.level = Level::portable};  // the Hopper level needs none
  const std::size_t                      size = Tributary::topk_merge_workspace_size(Space{}, lists, indices, scores, options);
  const View<std::byte, 1>               workspace("workspace", size - 1);
  expect_refusal([&] { Tributary::topk_merge(Space{}, lists, indices, scores, options, workspace); },
                 {"topk_merge: ", "workspace has " + std::to_string(size - 1) + " bytes", "expected at least " + std::to_string(size)});
}

TEST(TopkInstance, WithAWorkspaceOnlyTheCallersInstanceIsUsed) {
  const Space                 exec = another_instance();
  const View<float, 3>        values("values", 2, 3, 5000);
  const View<std::int32_t, 3> indices("indices", 2, 3, 40), merged("merged", 2, 3, 40);
  const View<float, 3>        scores("scores", 2, 3, 40), merged_scores("merged_scores", 2, 3, 40);
  for (const Level level : with_hopper({Level::automatic, Level::portable})) {
    if (needs_another_device(level)) continue;
    for (const std::int64_t splits : {1, 4}) {
      const TopkOptions        options{.level = level, .key_splits = splits};
      const View<std::byte, 1> workspace("workspace", Tributary::topk_workspace_size(exec, values, indices, scores, options));
      expect_stays_on_instance(exec, [&] { Tributary::topk(exec, values, indices, scores, options, workspace); });
    }
    for (const std::size_t count : {1, 2, 9}) {
      const std::vector<Tributary::TopkList> lists(count, {.indices = indices, .scores = scores});
      const TopkMergeOptions                 options{.level = level};
      const View<std::byte, 1> workspace("workspace", Tributary::topk_merge_workspace_size(exec, lists, merged, merged_scores, options));
      expect_stays_on_instance(exec, [&] { Tributary::topk_merge(exec, lists, merged, merged_scores, options, workspace); });
    }
  }
}

TEST(TopkInstance, TheShortOverloadAllocatesTheWorkspaceAndNoMore) {
  const View<float, 2>        values("values", 3, 5000);
  const View<std::int32_t, 2> indices("indices", 3, 40);
  const View<float, 2>        scores("scores", 3, 40);
  Tributary::topk(Space{}, values, indices, scores);
  KokkosEvents events;
  Tributary::topk(Space{}, values, indices, scores);
  EXPECT_EQ(events.peak_bytes, Tributary::topk_workspace_size(Space{}, values, indices, scores));
  EXPECT_EQ(events.allocated_bytes, 0u);
}

TEST(TopkInstance, AnUnalignedWorkspaceWillDo) {
  Array<float, 3> values({1, 2, 3000});
  Random          random;
  random.fill_with_normals(values);
  const auto                  in = in_space(values);
  const View<std::int32_t, 3> indices("indices", 1, 2, 33);
  const View<float, 3>        scores("scores", 1, 2, 33);
  const std::size_t           size = Tributary::topk_workspace_size(Space{}, in, indices, scores);
  const View<std::byte, 1>    workspace("workspace", size + 1);
  Tributary::topk(Space{}, in, indices, scores, {}, Kokkos::subview(workspace, Kokkos::pair(std::size_t{1}, size + 1)));
  const Rows expected = expected_topk(values, 33);
  EXPECT_TRUE(same_bits(from_space<3>(indices), expected.indices));
  EXPECT_TRUE(same_bits(from_space<3>(scores), expected.scores));
}

}  // namespace
}  // namespace TributaryTest
