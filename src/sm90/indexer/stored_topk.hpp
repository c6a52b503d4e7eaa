#pragma once
#include <algorithm>
#include <cstdint>

#include "sm90/indexer/indexer.hpp"
#include "sm90/topk/topk.hpp"

// indexer_topk in two steps, for calls of few queries whose scores fit into a small workspace: indexer_score's kernel stores them, topk's
// kernels select.

namespace Tributary::Impl::SM90 {

/// What the scores of a call may take of the workspace: little enough that they are still in the second-level cache (50 MB) when they are
/// read.
inline constexpr std::int64_t most_score_bytes = 32 << 20;

/// A row of scores, so long that every row begins at a multiple of 16 bytes.
inline std::int64_t score_row(const IndexerProblem& problem) { return (problem.keys + 3) / 4 * 4; }

/// Whether a call's scores are stored; else they are selected as they come, by the fused kernel.
///
/// Where tiles of queries fill half of the chip the fused kernel is faster (S 1024, 2048 and 4096 with T = S / 4: 30, 71 and 178 us, in its
/// form of commit 780d972, against 36, 75 and 199).  With fewer it would have to merge a list for each of many parts of the keys (q = 1, T
/// 262144: 561 us against 67).
///
/// \param key_splits  of the options: a call that names a number of parts gets the fused kernel in these
template <class Exec>
bool stores_scores(const Exec& exec, const IndexerProblem& problem, std::int64_t key_splits) {
  if (key_splits != 0 || problem.batch * query_tiles(problem) > exec.cuda_device_prop().multiProcessorCount / 2) return false;
  return problem.batch * problem.queries * 4 * score_row(problem) <= most_score_bytes;
}

/// What such a call needs beside its problem, laid out from a workspace's base (none: only counted).
template <class Exec>
struct StoredTopk {
  IndexerPlan             plan;
  Tensor<float, 3>        scores;  // [batch, queries, keys]
  Tensor<std::int32_t, 3> ranges;  // [batch, queries, 2]: the columns of a row's legal keys; no data where all keys are
  TopkArguments           selection;
  std::byte*              selection_workspace;

  StoredTopk(const Exec& exec, const IndexerProblem& p, const TopkOutput& output, WorkspaceLayout& layout)
      : plan(plan_indexer(exec, p, 0, 0, layout)) {
    const bool         some_illegal = p.range != nullptr || p.ratio != 0 || p.packed.cu_seqlens_q != nullptr;
    const std::int64_t rows = p.batch * p.queries, row = score_row(p);
    scores              = {layout.take<float>(rows * row), {p.batch, p.queries, p.keys}, {p.queries * row, row, 1}};
    ranges              = {some_illegal ? layout.take<std::int32_t>(rows * 2) : nullptr, {p.batch, p.queries, 2}, {p.queries * 2, 2, 1}};
    selection           = {.type       = ElementType::float32,
                           .values     = {scores.data, {p.batch, p.queries, p.keys}, {p.queries * row, row, 1}},
                           .range      = {ranges.data, {p.batch, p.queries, 2}, {p.queries * 2, 2, 1}},
                           .has_range  = some_illegal,
                           .indices    = {output.indices, {p.batch, p.queries, output.top_k}, {output.index_strides[0], output.index_strides[1], 1}},
                           .scores     = {output.scores, {p.batch, p.queries, output.top_k}, {output.score_strides[0], output.score_strides[1], 1}},
                           .has_scores = output.scores != nullptr};
    selection_workspace = layout.take<std::byte>(static_cast<std::int64_t>(SM90::topk_workspace_size(exec, selection, TopkOptions{})));
  }

  void run(const Exec& exec, const IndexerProblem& problem, const TopkOutput& output) const {
    SM90::indexer_score(exec, problem, plan, scores, true, ranges.data);
    SM90::topk(exec, selection, TopkOptions{}, output, selection_workspace);
  }
};

}  // namespace Tributary::Impl::SM90
