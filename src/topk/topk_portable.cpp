#include "Tributary_Topk.hpp"
#include "common/level.hpp"
#include "common/log.hpp"
#include "sm90/topk/topk.hpp"
#include "topk/topk.hpp"
#include "topk/topk_reference.hpp"

namespace Tributary::Impl {
namespace {

/// Rows of stored values.
template <class Value>
struct StoredValues {
  const Value*        values;
  std::int64_t        value_strides[2], length;
  const std::int32_t* range;  // null: whole rows
  std::int64_t        range_strides[2];

  KOKKOS_FUNCTION KeyInterval columns(std::int64_t batch, std::int64_t row) const {
    if (range == nullptr) return {0, length};
    const std::int32_t* const bounds = range + batch * range_strides[0] + row * range_strides[1];
    return {clip(bounds[0], 0, length), clip(bounds[1], 0, length)};
  }
  KOKKOS_INLINE_FUNCTION Entry entry(std::int64_t batch, std::int64_t row, std::int64_t column) const {
    const float value = static_cast<float>(values[batch * value_strides[0] + row * value_strides[1] + column]);
    return make_entry(sortable(value), static_cast<std::uint32_t>(column));
  }
};

/// A few partial lists of each row, seen as one row.
struct PartialLists {
  static constexpr int most = 4;  // a launch, to keep its closure small; more lists take more launches
  struct List {
    const std::int32_t* indices;
    const float*        scores;
    std::int64_t        index_strides[2], score_strides[2], length, offset;
  };
  List lists[most];
  int  count = 0;

  KOKKOS_FUNCTION KeyInterval columns(std::int64_t, std::int64_t) const {
    std::int64_t length = 0;
    for (int l = 0; l < count; ++l) length += lists[l].length;
    return {0, length};
  }
  KOKKOS_FUNCTION Entry entry(std::int64_t batch, std::int64_t row, std::int64_t column) const {
    int l = 0;
    for (; column >= lists[l].length; ++l) column -= lists[l].length;
    const List&        list  = lists[l];
    const std::int32_t index = list.indices[batch * list.index_strides[0] + row * list.index_strides[1] + column];
    const std::int64_t moved = index + list.offset;
    if (index < 0 || moved < 0 || moved > 0x7fffffff) return no_entry;
    return make_entry(sortable(list.scores[batch * list.score_strides[0] + row * list.score_strides[1] + column]),
                      static_cast<std::uint32_t>(moved));
  }
};

template <class Value>
StoredValues<Value> stored_values(const TopkArguments& arguments) {
  return {.values        = static_cast<const Value*>(arguments.values.data),
          .value_strides = {arguments.values.strides[0], arguments.values.strides[1]},
          .length        = arguments.values.extents[2],
          .range         = arguments.has_range ? arguments.range.data : nullptr,
          .range_strides = {arguments.range.strides[0], arguments.range.strides[1]}};
}

template <class Exec>
TopkPlan plan_call(const Exec& exec, const TopkArguments& arguments, const TopkOptions& options, WorkspaceLayout& layout) {
  const auto& extents = arguments.values.extents;
  return plan_topk(exec, extents[0], extents[1], extents[2], arguments.indices.extents[2], options, layout);
}

template <class Exec>
TopkPlan plan_call(const Exec& exec, const TopkMergeArguments& arguments, WorkspaceLayout& layout) {
  std::int64_t columns = 0;
  for (const auto& list : arguments.lists) columns += list.indices.extents[2];
  TopkPlan plan{};
  plan.batch         = arguments.indices.extents[0];
  plan.rows          = arguments.indices.extents[1];
  plan.keep          = std::max<std::int64_t>(1, std::min(arguments.indices.extents[2], columns));
  plan.tile          = 1024;
  plan.workers       = concurrent_workers(exec);
  plan.splits        = 1;
  plan.partial_lists = (static_cast<std::int64_t>(arguments.lists.size()) + PartialLists::most - 1) / PartialLists::most;
  take_workspace<Exec>(plan, layout);
  return plan;
}

PartialLists partial_lists(std::span<const TopkMergeArguments::List> lists) {
  PartialLists result;
  for (const auto& list : lists)
    result.lists[result.count++] = {.indices       = list.indices.data,
                                    .scores        = list.scores.data,
                                    .index_strides = {list.indices.strides[0], list.indices.strides[1]},
                                    .score_strides = {list.scores.strides[0], list.scores.strides[1]},
                                    .length        = list.indices.extents[2],
                                    .offset        = list.index_offset};
  return result;
}

template <class Exec, class Arguments>
Level level_of(std::string_view function, const Exec& exec, const Arguments& arguments, Level wanted, LevelFor purpose) {
  return choose_level(function, exec, wanted, purpose, [&] { return SM90::no_topk(exec, arguments); });
}

}  // namespace

template <class Exec>
std::size_t topk_workspace_size(const Exec& exec, const TopkArguments& arguments, const TopkOptions& options) {
  check_topk(arguments, options);
  const Level level = level_of("topk", exec, arguments, options.level, LevelFor::workspace_size);
  if (level == Level::reference) return 0;
  if constexpr (has_sm90<Exec>)
    if (level == Level::hopper) return SM90::topk_workspace_size(exec, arguments, options);
  WorkspaceLayout layout;
  plan_call(exec, arguments, options, layout);
  return layout.size();
}

template <class Exec>
void topk(const Exec& exec, const TopkArguments& arguments, const TopkOptions& options, const WorkspaceSpan& workspace) {
  const TopkOutput output = check_topk(arguments, options);
  const Level      level  = level_of("topk", exec, arguments, options.level, LevelFor::call);
  if (level == Level::reference) {
    exec.fence("Tributary::topk: reference level");
    return reference_topk(arguments, output);
  }
  std::byte* const base = workspace_base("topk", workspace, topk_workspace_size(exec, arguments, options));
  if constexpr (has_sm90<Exec>)
    if (level == Level::hopper) return SM90::topk(exec, arguments, options, output, base);
  WorkspaceLayout layout(base);
  const TopkPlan  plan = plan_call(exec, arguments, options, layout);
  if (log_enabled()) log("topk: portable level, " + std::to_string(plan.splits) + " parts of a row");
  visit_element_type(arguments.type, [&]<class Value>(std::type_identity<Value>) {
    if constexpr (!std::is_same_v<Value, float8_e4m3_t>)
      select_rows("Tributary::topk::portable", exec, stored_values<Value>(arguments), plan, output);
  });
  if (plan.partial_lists > 1) merge_partials("Tributary::topk::merge_splits", exec, plan, output);
}

template <class Exec>
std::size_t topk_merge_workspace_size(const Exec& exec, const TopkMergeArguments& arguments, const TopkMergeOptions& options) {
  check_topk_merge(arguments, options);
  if (level_of("topk_merge", exec, arguments, options.level, LevelFor::workspace_size) != Level::portable)
    return 0;  // the Hopper level needs none
  WorkspaceLayout layout;
  plan_call(exec, arguments, layout);
  return layout.size();
}

template <class Exec>
void topk_merge(const Exec& exec, const TopkMergeArguments& arguments, const TopkMergeOptions& options, const WorkspaceSpan& workspace) {
  const TopkOutput output = check_topk_merge(arguments, options);
  const Level      level  = level_of("topk_merge", exec, arguments, options.level, LevelFor::call);
  if (level == Level::reference) {
    exec.fence("Tributary::topk_merge: reference level");
    return reference_topk_merge(arguments, output);
  }
  if constexpr (has_sm90<Exec>)
    if (level == Level::hopper) return SM90::topk_merge(exec, arguments, output);
  WorkspaceLayout layout(workspace_base("topk_merge", workspace, topk_merge_workspace_size(exec, arguments, options)));
  TopkPlan        plan = plan_call(exec, arguments, layout);
  if (log_enabled()) log("topk_merge: portable level, " + std::to_string(arguments.lists.size()) + " lists");
  for (plan.first_list = 0; plan.first_list < plan.partial_lists; ++plan.first_list) {
    const auto rest = arguments.lists.subspan(static_cast<std::size_t>(plan.first_list) * PartialLists::most);
    select_rows("Tributary::topk_merge::portable", exec, partial_lists(rest.first(std::min<std::size_t>(rest.size(), PartialLists::most))),
                plan, output);
  }
  if (plan.partial_lists > 1) merge_partials("Tributary::topk_merge::merge_lists", exec, plan, output);
}

using Space = TRIBUTARY_EXECUTION_SPACE;
template std::size_t topk_workspace_size(const Space&, const TopkArguments&, const TopkOptions&);
template void        topk(const Space&, const TopkArguments&, const TopkOptions&, const WorkspaceSpan&);
template std::size_t topk_merge_workspace_size(const Space&, const TopkMergeArguments&, const TopkMergeOptions&);
template void        topk_merge(const Space&, const TopkMergeArguments&, const TopkMergeOptions&, const WorkspaceSpan&);

}  // namespace Tributary::Impl
