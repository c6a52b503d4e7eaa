#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <string>

#include "attention/attention_tile.hpp"
#include "common/workers.hpp"

// The Hopper level of attention_forward, as the dispatch sees it.  Templates, so that the dispatch compiles where there is no CUDA; they
// exist for Kokkos::Cuda.

namespace Tributary::Impl::SM90 {

/// Why the level cannot take a call; empty if it can.
template <class Exec>
std::string no_attention_forward(const Exec& exec, const AttentionProblem& problem, const RotaryProblem& rotary,
                                 const AttentionForwardArguments& arguments);

/// How a call is cut, and its part of the workspace.
struct AttentionForwardPlan {
  std::int64_t  blocks;   // of query rows, for each batch entry and head
  std::int64_t  section;  // (batch entry, head) pairs that are worked on together, so that their keys and values stay in L2
  std::int32_t  teams;
  void*         maps;       // of queries, keys and values, for the copy engine
  std::int32_t* next_item;  // the queue of work items
};

template <class Exec>
AttentionForwardPlan plan_attention_forward(const Exec& exec, const AttentionProblem& problem, WorkspaceLayout& layout);

/// The problem's queries and keys are rotated already.
template <class Exec>
void attention_forward(const Exec& exec, const AttentionProblem& problem, const BucketTable& buckets, const AttentionForwardPlan& plan,
                       const AttentionForwardOutput& output);

}  // namespace Tributary::Impl::SM90
