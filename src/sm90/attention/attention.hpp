#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <string>

#include "attention/attention_gradient_tile.hpp"
#include "common/workers.hpp"

// The Hopper level of attention_forward and attention_backward, as the dispatch sees it.  Templates, so that the dispatch compiles where
// there is no CUDA; they exist for Kokkos::Cuda.

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
  std::int32_t  tile_queries, tile_heads, head_blocks;  // beyond 256 only: of a tile; tiles that the heads of a key head take
  void*         maps;                                   // of queries, keys and values, for the copy engine
  std::int32_t* next_item;                              // the queue of work items
  // Of e4m3 only: values with keys along the rows, see transpose_values.cuh.
  float8_e4m3_t* transposed_values;
  std::int64_t   transposed_keys;  // of a row, with zeros up to whole blocks of scales
};

template <class Exec>
AttentionForwardPlan plan_attention_forward(const Exec& exec, const AttentionProblem& problem, WorkspaceLayout& layout);

/// The problem's queries and keys are rotated already.
template <class Exec>
void attention_forward(const Exec& exec, const AttentionProblem& problem, const BucketTable& buckets, const AttentionForwardPlan& plan,
                       const AttentionForwardOutput& output);

/// Head dimensions up to 512 have kernels of their own, whose tiles pack the heads that share a key head.
constexpr bool is_wide(const AttentionProblem& p) { return p.head_dim > 256 || p.value_dim > 256; }

/// Part of no_attention_forward, plan_attention_forward and attention_forward for these.
template <class Exec>
std::string no_wide_attention_forward(const Exec& exec, const AttentionProblem& problem);
template <class Exec>
AttentionForwardPlan plan_wide_attention_forward(const Exec& exec, const AttentionProblem& problem, WorkspaceLayout& layout);
template <class Exec>
void wide_attention_forward(const Exec& exec, const AttentionProblem& problem, const BucketTable& buckets, const AttentionForwardPlan& plan,
                            const AttentionForwardOutput& output);

/// Why the level cannot take a call; empty if it can.
template <class Exec>
std::string no_attention_backward(const Exec& exec, const AttentionProblem& problem, const RotaryProblem& rotary,
                                  const AttentionBackwardArguments& arguments);

/// A part of the gradients of queries: 64 queries, 64 columns of one head.
inline constexpr int gradient_part_floats = 64 * 64;

/// How a call is cut, and its part of the workspace.  The keys' kernel adds to the gradients of queries, tile by tile of keys in the order
/// of the keys: a block waits for its turn.
struct AttentionBackwardPlan {
  std::int64_t  blocks;   // of key rows, for each batch entry and key head
  std::int64_t  section;  // (batch entry, key head) pairs that are worked on together, so that their queries and sums stay in L2
  std::int64_t  slots;    // tiles of queries in a batch entry; a packed sequence's last one may be followed by one that is not used
  std::int32_t  queries;  // of a tile
  std::int32_t  teams;
  void*         maps;       // of queries, keys, values and gradients of outputs, for the copy engine
  std::int32_t* next_item;  // the queue of work items
  std::int32_t* turns;      // [batch][slot][head][halves of the columns]: blocks of keys that have been added; halves only beyond 256
  // Beyond 128 components only, where teams form crews (gradient_crew.cuh): their states, the next team's number, and weights and
  // gradients of scores on their way from team to team.
  void*          crews;
  std::int32_t*  tickets;
  unsigned char* places;
  float*         sums;  // [batch][slot][head][64 queries of the tile][64 columns][gradient_part_floats], in the order of registers

  /// The number of a sequence's tile of queries; query_row: of the sequence's first query.
  KOKKOS_INLINE_FUNCTION std::int64_t slot(std::int64_t batch, const PackedOffsets& packed, std::int64_t query_row, std::int64_t sequence,
                                           std::int64_t tile) const {
    return batch * slots + query_row / queries + (packed.cu_seqlens_q == nullptr ? 0 : sequence) + tile;
  }
};

template <class Exec>
AttentionBackwardPlan plan_attention_backward(const Exec& exec, const AttentionProblem& problem, WorkspaceLayout& layout);

/// The problem's queries and keys are rotated already, the gradients of theirs are not turned back here.
template <class Exec>
void attention_backward(const Exec& exec, const AttentionProblem& problem, const BucketTable& buckets, const RowStatistics& statistics,
                        const void* grad_out, const std::int64_t (&grad_out_strides)[3], const AttentionBackwardPlan& plan,
                        const GradientOutput& grad_query, const GradientOutput& grad_key, const GradientOutput& grad_value);

/// Which gradients of what is added to scores a call wants.
struct WantedBiasGradients {
  bool             additive_mask, alibi_slopes, relative_bias;
  Tensor<float, 4> mask;  // the gradient of the additive mask

  bool any() const { return additive_mask || alibi_slopes || relative_bias; }
  bool mask_of_all_queries() const { return additive_mask && mask.extents[2] == 1; }
};

/// Their part of the workspace: sums over queries, to be added up by the caller.  Null: not wanted.  The gradient of a mask that has a row
/// a query needs none.
struct BiasGradientPlan {
  std::int64_t blocks;                 // of key rows, for each batch entry
  float*       alibi_keys  = nullptr;  // [B, Hq, Sk]: what the pairs of a key add to the gradient of its head's slope
  float*       mask_keys   = nullptr;  // [B, Hq, Sk]: ... to the gradient of a mask that is the same for all queries
  float*       bucket_sums = nullptr;  // [B, blocks, Hq, buckets]: ... of a block of keys to that of the table
};

template <class Exec>
BiasGradientPlan plan_bias_gradients(const Exec& exec, const AttentionProblem& problem, const WantedBiasGradients& wanted,
                                     WorkspaceLayout& layout);

/// After attention_backward, whose plan it uses again; likewise.
template <class Exec>
void bias_gradients(const Exec& exec, const AttentionProblem& problem, const BucketTable& buckets, const RowStatistics& statistics,
                    const void* grad_out, const std::int64_t (&grad_out_strides)[3], const AttentionBackwardPlan& backward,
                    const WantedBiasGradients& wanted, const BiasGradientPlan& plan);

}  // namespace Tributary::Impl::SM90
