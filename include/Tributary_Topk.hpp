#pragma once
#include <cstdint>
#include <optional>
#include <span>

#include "Tributary_Level.hpp"
#include "Tributary_Types.hpp"
#include "impl/Tributary_Operator.hpp"
#include "impl/Tributary_Tensor.hpp"

namespace Tributary {

/// In which order a row's chosen entries come out.  Both pad the row's end.
enum class TopkOrder {
  by_score,  ///< higher score first, equal scores by smaller index, NaN last
  by_index   ///< smaller index first
};

struct TopkOptions {
  TopkOrder order = TopkOrder::by_score;
  /// [rows, 2] or [batch, rows, 2]: only columns range[0] <= j < range[1] of a row take part, clipped to [0, n].  Not given: all.
  ArrayOption<std::int32_t, 3> range = {};
  Level                        level = Level::automatic;
  // How the work is cut.  0 = chosen here.  They change time and memory, never the result.
  std::int64_t chunk_keys = 0;  ///< columns a row is read by; portable level
  std::int64_t key_splits = 0;  ///< parts of a row worked on at the same time and merged at the end; Hopper level: 256 at most
};

struct TopkMergeOptions {
  TopkOrder order = TopkOrder::by_score;
  Level     level = Level::automatic;
};

/// One of the partial results that topk_merge joins.  Entries may come in any order; an index of -1 is no entry.
struct TopkList {
  ArrayOption<std::int32_t, 3> indices;           ///< [rows, n] or [batch, rows, n]; n differs from list to list as it likes
  ArrayOption<float, 3>        scores;            ///< the same extents
  std::int32_t                 index_offset = 0;  ///< added to every index of this list
};

namespace Impl {

/// Where chosen entries go, as kernels see it.
struct TopkOutput {
  std::int32_t* indices = nullptr;
  float*        scores  = nullptr;                       // null: not wanted
  std::int64_t  index_strides[2]{}, score_strides[2]{};  // batch, row
  std::int64_t  top_k = 0;
  TopkOrder     order = TopkOrder::by_score;
};

struct TopkArguments {
  ElementType                   type;
  Tensor<const void, 3>         values;
  Tensor<const std::int32_t, 3> range;
  bool                          has_range;
  Tensor<std::int32_t, 3>       indices;
  Tensor<float, 3>              scores;
  bool                          has_scores;
};

struct TopkMergeArguments {
  struct List {
    Tensor<const std::int32_t, 3> indices;
    Tensor<const float, 3>        scores;
    std::int32_t                  index_offset;
  };
  std::span<const List>   lists;
  Tensor<std::int32_t, 3> indices;
  Tensor<float, 3>        scores;
  bool                    has_scores;
};

// Compiled in the library, once for each enabled execution space.
template <class Exec>
std::size_t topk_workspace_size(const Exec&, const TopkArguments&, const TopkOptions&);
template <class Exec>
void topk(const Exec&, const TopkArguments&, const TopkOptions&, const WorkspaceSpan&);
template <class Exec>
std::size_t topk_merge_workspace_size(const Exec&, const TopkMergeArguments&, const TopkMergeOptions&);
template <class Exec>
void topk_merge(const Exec&, const TopkMergeArguments&, const TopkMergeOptions&, const WorkspaceSpan&);

template <class Exec, AnyView Values, AnyView Indices, OptionalView Scores>
TopkArguments topk_arguments(const Values& values, const Indices& indices, const Scores& scores, const TopkOptions& options) {
  check_views<Exec, Values, Indices, Scores>();
  using Value = typename Values::non_const_value_type;
  static_assert(Element<Value> && !std::is_same_v<Value, float8_e4m3_t>, "Tributary::topk: values must be float, bfloat16_t or half_t");
  return {.type       = element_type<Value>(),
          .values     = as<const void>(tensor<3>("topk", "values", values)),
          .range      = options.range.template on<Exec>("topk", "range"),
          .has_range  = options.range.given(),
          .indices    = output_tensor<std::int32_t, 3>("topk", "indices", indices),
          .scores     = output_tensor<float, 3>("topk", "scores", scores),
          .has_scores = is_view<Scores>};
}

template <class Exec, AnyView Indices, OptionalView Scores, class Function>
auto with_merge_arguments(std::span<const TopkList> lists, const Indices& indices, const Scores& scores, const Function& function) {
  check_views<Exec, Indices, Scores>();
  std::vector<TopkMergeArguments::List> tensors;
  for (const TopkList& list : lists)
    tensors.push_back({list.indices.template on<Exec>("topk_merge", "a list's indices"),
                       list.scores.template on<Exec>("topk_merge", "a list's scores"), list.index_offset});
  return function(TopkMergeArguments{.lists      = tensors,
                                     .indices    = output_tensor<std::int32_t, 3>("topk_merge", "indices", indices),
                                     .scores     = output_tensor<float, 3>("topk_merge", "scores", scores),
                                     .has_scores = is_view<Scores>});
}

}  // namespace Impl

/// Bytes that topk needs as its workspace for these arguments on this instance.
template <ExecutionSpace Exec, Impl::AnyView Values, Impl::AnyView Indices, Impl::OptionalView Scores>
std::size_t topk_workspace_size(const Exec& exec, const Values& values, const Indices& indices, const Scores& scores,
                                const TopkOptions& options = {}) {
  return Impl::topk_workspace_size(exec, Impl::topk_arguments<Exec>(values, indices, scores, options), options);
}

/// The k best entries of every row: higher value first, equal values by smaller index, -0 equal to +0, NaN below everything
/// else, -infinity included.  The result is a function of the values alone, the same for every backend, chunk and split.
///
/// \param exec     execution-space instance; all work is queued on it
/// \param values   [rows, n] or [batch, rows, n], float, bfloat16_t or half_t
/// \param indices  [rows, k] or [batch, rows, k] int32, out; -1 where a row has fewer than k entries.  k >= 1 is its last extent
/// \param scores   the same extents, float, out, or std::nullopt; -infinity beside an index of -1, NaN as 0x7fc00000, -0 as +0
/// \param options  order, columns that take part, level, cut of the work
/// \param workspace  rank-1 View of std::byte with at least topk_workspace_size bytes.  With it nothing is allocated or fenced;
///                 without it the operator allocates one and fences when freeing it
/// \throws std::invalid_argument on mismatched extents, k = 0, overlapping arrays, unreachable memory, too small a workspace
template <ExecutionSpace Exec, Impl::AnyView Values, Impl::AnyView Indices, Impl::OptionalView Scores, Impl::WorkspaceView Workspace>
void topk(const Exec& exec, const Values& values, const Indices& indices, const Scores& scores, const TopkOptions& options,
          const Workspace& workspace) {
  Impl::topk(exec, Impl::topk_arguments<Exec>(values, indices, scores, options), options, Impl::workspace_span<Exec>(workspace));
}

template <ExecutionSpace Exec, Impl::AnyView Values, Impl::AnyView Indices, Impl::OptionalView Scores>
void topk(const Exec& exec, const Values& values, const Indices& indices, const Scores& scores, const TopkOptions& options = {}) {
  const auto arguments = Impl::topk_arguments<Exec>(values, indices, scores, options);
  const auto workspace = Impl::allocate_workspace(exec, Impl::topk_workspace_size(exec, arguments, options));
  Impl::topk(exec, arguments, options, Impl::workspace_span<Exec>(workspace));
}

/// On the default instance of the values' execution space.
template <Impl::AnyView Values, Impl::AnyView Indices, Impl::OptionalView Scores>
void topk(const Values& values, const Indices& indices, const Scores& scores, const TopkOptions& options = {}) {
  topk(typename Values::execution_space{}, values, indices, scores, options);
}

/// Bytes that topk_merge needs as its workspace.
template <ExecutionSpace Exec, Impl::AnyView Indices, Impl::OptionalView Scores>
std::size_t topk_merge_workspace_size(const Exec& exec, std::span<const TopkList> lists, const Indices& indices, const Scores& scores,
                                      const TopkMergeOptions& options = {}) {
  return Impl::with_merge_arguments<Exec>(lists, indices, scores,
                                          [&](const auto& arguments) { return Impl::topk_merge_workspace_size(exec, arguments, options); });
}

/// The k best of the union of partial lists, in the order of topk: what topk would have chosen had it seen all their rows at
/// once.  Associative and commutative, so key chunks, splits and machines can be merged in any grouping.
///
/// \param exec     execution-space instance; all work is queued on it
/// \param lists    one or more partial results with the same batch and rows; their indices, after index_offset, must be disjoint
///                 within a row (the caller's duty).  An index of -1, or one outside [0, 2^31) after its offset, is no entry
/// \param indices  [rows, k] or [batch, rows, k] int32, out; may be the very array of one of the lists, to accumulate in place
/// \param scores   the same extents, float, out, or std::nullopt
/// \param workspace  as in topk
/// \throws std::invalid_argument as topk does
template <ExecutionSpace Exec, Impl::AnyView Indices, Impl::OptionalView Scores, Impl::WorkspaceView Workspace>
void topk_merge(const Exec& exec, std::span<const TopkList> lists, const Indices& indices, const Scores& scores,
                const TopkMergeOptions& options, const Workspace& workspace) {
  Impl::with_merge_arguments<Exec>(lists, indices, scores, [&](const auto& arguments) {
    Impl::topk_merge(exec, arguments, options, Impl::workspace_span<Exec>(workspace));
  });
}

template <ExecutionSpace Exec, Impl::AnyView Indices, Impl::OptionalView Scores>
void topk_merge(const Exec& exec, std::span<const TopkList> lists, const Indices& indices, const Scores& scores,
                const TopkMergeOptions& options = {}) {
  Impl::with_merge_arguments<Exec>(lists, indices, scores, [&](const auto& arguments) {
    const auto workspace = Impl::allocate_workspace(exec, Impl::topk_merge_workspace_size(exec, arguments, options));
    Impl::topk_merge(exec, arguments, options, Impl::workspace_span<Exec>(workspace));
  });
}

/// On the default instance of the indices' execution space.
template <Impl::AnyView Indices, Impl::OptionalView Scores>
void topk_merge(std::span<const TopkList> lists, const Indices& indices, const Scores& scores, const TopkMergeOptions& options = {}) {
  topk_merge(typename Indices::execution_space{}, lists, indices, scores, options);
}

}  // namespace Tributary
