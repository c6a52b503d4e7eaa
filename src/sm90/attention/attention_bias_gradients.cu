#include "sm90/attention/attention.hpp"
#include "sm90/attention/gradient_biases.cuh"
#include "sm90/attention/gradient_warp.cuh"
#include "sm90/prepare.cuh"
#include "sm90/roles.cuh"

// Gradients of what is added to scores: of the additive mask, of ALiBi's slopes, of the table of relative positions.
//
// All are sums of the gradients of scores, which the sweep for queries, keys and values has in registers but no room to add up.  So another
// kernel makes them again, with two of the sweep's five products: blocks of 128 keys, or 64 beyond 256 components, against the stream of
// queries, by the sweep's own loader and formulas.  It runs only where such a gradient is wanted.
//
// Sums over queries stay with a block of keys: what a key's pairs add to its head's slope, and to a mask that is the same for all queries,
// in registers; the table's buckets in shared memory, a column a thread, so that nobody adds to what another one adds to.  Gradients of
// masks with a row a query are added up in device memory, head after head and batch entry after batch entry, by the thread that always has
// that pair.  Each sum has one order.

namespace Tributary::Impl::SM90 {
namespace {

/// A math warp: gradients of the scores of its 16 keys, and what is summed of them.
template <class Tile>
class BiasDifferentiator : GradientWarp<Tile> {
  using Base = GradientWarp<Tile>;

 public:
  __device__ BiasDifferentiator(const BiasGradientCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int warp, int lane)
      : Base(call, shared, scratch, warp, lane),
        biases_(call),
        row_(this->first_row() + lane / 4),
        column_(2 * (lane % 4)),
        buckets_(reinterpret_cast<float*>(scratch + Tile::buckets_offset)),
        own_buckets_(buckets_ + 32 * warp + lane) {}

  __device__ void run() {
    if (biases_.bucket_sums != nullptr)
      for (int b = 0; b < Tile::buckets; ++b) own_buckets_[b * Tile::bucket_floats] = 0.0f;
    this->for_each_piece([this](const GradientPiece& piece) { differentiate(piece); });
  }

 private:
  using Base::count;
  using Base::lane_;
  using Base::shared_;
  using Base::warp_;

  __device__ void differentiate(const GradientPiece& piece) {
    GradientScores<Tile> gradient(biases_, piece, this->first_row(), lane_);
    const std::int32_t   heads = biases_.problem.heads / biases_.problem.key_heads;
    GradientStep<Tile>   step(biases_.problem, piece);
    if (piece.query_tiles > 0) this->wait_for_keys();
    for (std::int32_t h = 0; h < heads; ++h) {
      const std::int32_t head     = piece.key_head * heads + h;
      float              alibi[2] = {0.0f, 0.0f}, mask[2] = {0.0f, 0.0f};
#pragma unroll 1
      for (std::int32_t n = 0; n < piece.query_tiles; ++n) {
        float gradients[count];
        multiply(gradient, step, gradients);
        if (biases_.mask != nullptr) add_to_mask(piece, step, gradients);
        if (biases_.mask_keys != nullptr) for_each(gradients, [&](float g, int r, int) { mask[r] += g; });
        if (biases_.alibi_keys != nullptr) {
          const std::int32_t distance = step.position(piece) - piece.first_key - row_;  // i' - j of the first row and column
          for_each(gradients, [&](float g, int r, int column) { alibi[r] -= g * static_cast<float>(abs(distance + column - 8 * r)); });
        }
        if (biases_.bucket_sums != nullptr) add_to_buckets(piece, step, gradients);
        step.next(piece);
      }
      if (biases_.mask_keys != nullptr) store_keys(biases_.mask_keys, piece, head, mask);
      if (biases_.alibi_keys != nullptr) store_keys(biases_.alibi_keys, piece, head, alibi);
      if (biases_.bucket_sums != nullptr) store_buckets(piece, head);
    }
    if (piece.query_tiles > 0) this->release(&shared_.keys_empty);
  }

  /// A step's gradients of scores, of what biases are added to.
  __device__ void multiply(GradientScores<Tile>& gradient, const GradientStep<Tile>& step, float (&gradients)[count]) {
    float     scores[count];
    const int group_rows = this->group() * 64 * panel_row_bytes;
    this->wait_for_queries(stage_);
    this->multiply_rows(scores, Tile::keys_offset + group_rows, Base::queries_at(stage_.slot));
    this->wait_for_grad_out(stage_);
    this->multiply_rows(gradients, Tile::values_offset + group_rows, Base::grad_out_at(stage_.slot));
    ptx::wgmma_wait_group<1>();
    ptx::pin(scores);
    gradient.weigh(scores, step, shared_.lse[stage_.slot]);
    ptx::wgmma_wait_group<0>();
    ptx::pin(gradients);
    gradient.differentiate(
        gradients, [&](int i) { return scores[i]; }, step, shared_.shift[stage_.slot], shared_.share[stage_.slot]);
    this->release(&shared_.queries_empty[stage_.slot], &shared_.grad_out_empty[stage_.slot]);
    stage_.next();
  }

  /// function(gradient, r, column), as straight-line code: of each row from column to column.
  template <class Function>
  __device__ void for_each(float (&gradients)[count], const Function& function) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int r = i / (count / 2), n = i % (count / 2) / 2, c = i % 2;
      function(gradients[4 * n + 2 * r + c], r, 8 * n + c + column_);
    }
  }

  /// No other thread has these pairs of queries and keys, of whichever head and batch entry.
  __device__ void add_to_mask(const GradientPiece& piece, const GradientStep<Tile>& step, float (&gradients)[count]) const {
    const std::int32_t queries = piece.sequence_queries - step.first_query();
    const std::int32_t keys    = min(piece.keys, static_cast<std::int32_t>(biases_.problem.additive_mask_columns) - piece.first_key);
    float* const       to      = biases_.mask + piece.batch * biases_.mask_strides[0] + step.head * biases_.mask_strides[1] +
                      (piece.query_row + step.first_query()) * biases_.mask_strides[2] + piece.first_key + row_;
    const bool adds = biases_.adds_to_mask();
    for_each(gradients, [&](float g, int r, int column) {
      if (column >= queries || row_ + 8 * r >= keys) return;
      float* const place = to + column * biases_.mask_strides[2] + 8 * r;
      if (adds)
        Kokkos::atomic_add(place, g);  // in the order of this thread, which does not wait for it
      else
        *place = g;
    });
  }

  /// A key's sum over the queries of a head; four threads share it.
  __device__ void store_keys(float* to, const GradientPiece& piece, std::int32_t head, float (&of_rows)[2]) const {
    const AttentionProblem& p = biases_.problem;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      of_rows[r] += __shfl_xor_sync(0xffffffffu, of_rows[r], 1);
      of_rows[r] += __shfl_xor_sync(0xffffffffu, of_rows[r], 2);
      if (lane_ % 4 == 0 && row_ + 8 * r < piece.keys)
        to[(piece.batch * std::int64_t{p.heads} + head) * p.keys + piece.key_row + row_ + 8 * r] = of_rows[r];
    }
  }

  /// Along a row distances go one way, so neighbours are mostly in one bucket: it is touched when another one comes.
  __device__ void add_to_buckets(const GradientPiece& piece, const GradientStep<Tile>& step, float (&gradients)[count]) const {
    const AttentionProblem& p     = biases_.problem;
    const std::int32_t      first = piece.first_key + row_ - step.position(piece);  // j - i' of the first row and column
    std::int32_t            at    = -1;
    float                   sum   = 0.0f;
    const auto              leave = [&] {
      if (0 <= at && at < biases_.bucket_count) own_buckets_[at * Tile::bucket_floats] += sum;
    };
    for_each(gradients, [&](float g, int r, int column) {
      const std::int32_t relative = first + 8 * r - column;
      const std::int32_t bucket =
          biases_.buckets.bucket[max(-p.max_distance, min(relative, p.max_distance)) + p.max_distance] - biases_.first_bucket;
      if (bucket != at) {
        leave();
        at  = bucket;
        sum = 0.0f;
      }
      sum += g;
    });
    leave();
  }

  /// The team's sums over a head's queries; they are zero behind it.  A block's sequences join.
  __device__ void store_buckets(const GradientPiece& piece, std::int32_t head) const {
    const AttentionProblem& p     = biases_.problem;
    const std::int64_t      block = piece.key_row / Tile::keys;
    float* const            to =
        biases_.bucket_sums + ((piece.batch * biases_.blocks + block) * std::int64_t{p.heads} + head) * p.buckets + biases_.first_bucket;
    ptx::bar_sync(1, 32 * Tile::math_warps);
    for (int b = warp_; b < biases_.bucket_count; b += Tile::math_warps) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < Tile::math_warps; ++w) {
        float& part = buckets_[b * Tile::bucket_floats + 32 * w + lane_];
        sum += part;
        part = 0.0f;
      }
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (lane_ == 0) to[b] = piece.key_row % Tile::keys == 0 ? sum : to[b] + sum;
    }
    ptx::bar_sync(1, 32 * Tile::math_warps);
  }

  const BiasGradientCall&          biases_;
  const int                        row_, column_;  // this thread's first ones
  float* const                     buckets_;       // [buckets][bucket_floats]
  float* const                     own_buckets_;
  RingPosition<Tile::query_stages> stage_;
};

template <class Tile>
struct BiasGradientKernel {
  BiasGradientCall call;

  KOKKOS_INLINE_FUNCTION static constexpr int scratch_bytes() { return Tile::scratch_bytes; }

  __device__ void run(const Member&, unsigned char* scratch, int warp, int lane) const {
    const bool            cleans = has_rows_to_clean(call.problem);
    GradientShared<Tile>& shared = start_team<Tile>(scratch, cleans);
    if (warp < Tile::math_warps) {
      ptx::setmaxnreg_inc<Tile::math_registers>();
      BiasDifferentiator<Tile>(call, shared, scratch, warp, lane).run();
    } else {
      ptx::setmaxnreg_dec<Tile::other_registers>();
      if (warp == Tile::math_warps)
        BiasGradientLoader<Tile>(call, shared, scratch, lane).run();
      else if (warp == Tile::math_warps + 1 && cleans)
        clean_tiles<Tile>(call, shared, scratch, lane);
    }
  }
};

/// Pairs that no query sees, and those of other sequences, have no gradient.
struct ClearMask {
  float*       gradient;
  std::int64_t heads, rows, columns, strides[3];

  KOKKOS_FUNCTION void operator()(const RowPolicy<Kokkos::Cuda>::member_type& team) const {
    const std::int64_t at = team.league_rank(), row = at % rows, head = at / rows % heads, batch = at / rows / heads;
    float* const       of_row = gradient + batch * strides[0] + head * strides[1] + row * strides[2];
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, columns), [&](const std::int64_t column) { of_row[column] = 0.0f; });
  }
};

/// What comes in beside the call.
struct GradOut {
  const void* data;
  const std::int64_t (&strides)[3];
};

template <class Tile>
void run(const Kokkos::Cuda& exec, const BiasGradientCall& call, const GradOut& grad_out) {
  if (call.bias_items() == 0) return;
  prepare_maps("Tributary::attention_backward::hopper::prepare_biases", exec,
               gradient_maps<Tile>(call.problem, grad_out.data, grad_out.strides), call.plan.maps, call.plan.next_item);
  const auto teams = static_cast<int>(std::min<std::int64_t>(exec.cuda_device_prop().multiProcessorCount, call.bias_items()));
  launch_roles<Tile::team_threads>("Tributary::attention_backward::hopper::biases", exec, teams, BiasGradientKernel<Tile>{call});
}

/// Sums over queries, as many buckets at a time as shared memory holds.
template <class Tile>
void run_sums(const Kokkos::Cuda& exec, BiasGradientCall call, const BiasGradientPlan& plan, const GradOut& grad_out) {
  call.alibi_keys  = plan.alibi_keys;
  call.mask_keys   = plan.mask_keys;
  call.bucket_sums = plan.bucket_sums;
  do {
    call.bucket_count = std::min(Tile::buckets, call.problem.buckets - call.first_bucket);
    run<Tile>(exec, call, grad_out);
    call.first_bucket += Tile::buckets;
    call.alibi_keys = call.mask_keys = nullptr;
  } while (call.bucket_sums != nullptr && call.first_bucket < call.problem.buckets);
}

/// The gradient of a mask that has a row a query.
template <class Tile>
void run_mask(const Kokkos::Cuda& exec, BiasGradientCall call, const Tensor<float, 4>& mask, const GradOut& grad_out) {
  constexpr std::int64_t  most_tiles         = 8;  // a part of the gradient that many heads add to, at most 256 KiB a team, stays in the L2
  const AttentionProblem& p                  = call.problem;
  const auto [batches, heads, rows, columns] = mask.extents;
  if (batches * heads * rows * columns == 0) return;
  const int threads = columns <= 64 ? 32 : 256;
  Kokkos::parallel_for("Tributary::attention_backward::hopper::clear_mask",
                       RowPolicy<Kokkos::Cuda>(exec, static_cast<int>(batches * heads * rows), threads),
                       ClearMask{mask.data, heads, rows, columns, {mask.strides[0], mask.strides[1], mask.strides[2]}});
  call.mask        = mask.data;
  call.all_batches = batches == 1 && p.batch > 1;
  call.all_heads   = heads == 1 && p.heads > 1;
  for (int d = 0; d < 3; ++d) call.mask_strides[d] = mask.extents[d] == 1 ? 0 : mask.strides[d];
  // Enough items for all teams.
  const std::int64_t tiles  = (p.queries + Tile::queries - 1) / Tile::queries;
  const std::int64_t items  = call.batch_groups() * call.head_groups() * call.blocks * tiles;
  const std::int64_t wanted = 4 * std::int64_t{exec.cuda_device_prop().multiProcessorCount};
  call.chunk_tiles          = std::clamp<std::int64_t>(items / wanted, 1, most_tiles);
  call.chunks               = (tiles + call.chunk_tiles - 1) / call.chunk_tiles;
  run<Tile>(exec, call, grad_out);
}

// The instantiations of this kernel.
template <class Element>
void run_dimensions(const Kokkos::Cuda& exec, const BiasGradientCall& call, const BiasGradientPlan& plan, const WantedBiasGradients& wanted,
                    const GradOut& grad_out) {
  const auto run_both = [&]<class Tile>(std::type_identity<Tile>) {
    if (wanted.alibi_slopes || wanted.relative_bias || wanted.mask_of_all_queries()) run_sums<Tile>(exec, call, plan, grad_out);
    if (wanted.additive_mask && !wanted.mask_of_all_queries()) run_mask<Tile>(exec, call, wanted.mask, grad_out);
  };
  switch (gradient_dim(call.problem)) {
    case 512: return run_both(std::type_identity<BiasGradientTile<Element, 512>>{});
    case 256: return run_both(std::type_identity<BiasGradientTile<Element, 256>>{});
    default: return run_both(std::type_identity<BiasGradientTile<Element, 128>>{});
  }
}

}  // namespace

template <class Exec>
BiasGradientPlan plan_bias_gradients(const Exec&, const AttentionProblem& p, const WantedBiasGradients& wanted, WorkspaceLayout& layout) {
  const int          block_keys = bias_gradient_keys(gradient_dim(p));
  BiasGradientPlan   plan{.blocks = (p.keys + block_keys - 1) / block_keys};
  const std::int64_t keys = p.batch * p.heads * p.keys;
  if (wanted.alibi_slopes) plan.alibi_keys = layout.take<float>(keys);
  if (wanted.mask_of_all_queries()) plan.mask_keys = layout.take<float>(keys);
  if (wanted.relative_bias) plan.bucket_sums = layout.take<float>(p.batch * plan.blocks * p.heads * p.buckets);
  return plan;
}

template <class Exec>
void bias_gradients(const Exec& exec, const AttentionProblem& problem, const BucketTable& buckets, const RowStatistics& statistics,
                    const void* grad_out, const std::int64_t (&grad_out_strides)[3], const AttentionBackwardPlan& backward,
                    const WantedBiasGradients& wanted, const BiasGradientPlan& plan) {
  BiasGradientCall call{{problem, buckets, statistics, backward, {}, {}}};
  call.blocks = plan.blocks;
  if (problem.type == ElementType::bfloat16)
    run_dimensions<bfloat16_t>(exec, call, plan, wanted, {grad_out, grad_out_strides});
  else
    run_dimensions<half_t>(exec, call, plan, wanted, {grad_out, grad_out_strides});
}

using Space = Kokkos::Cuda;
template BiasGradientPlan plan_bias_gradients(const Space&, const AttentionProblem&, const WantedBiasGradients&, WorkspaceLayout&);
template void             bias_gradients(const Space&, const AttentionProblem&, const BucketTable&, const RowStatistics&, const void*,
                                         const std::int64_t (&)[3], const AttentionBackwardPlan&, const WantedBiasGradients&, const BiasGradientPlan&);

}  // namespace Tributary::Impl::SM90
