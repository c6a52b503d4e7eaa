#pragma once
#include "sm90/attention/gradient_crew.cuh"
#include "sm90/attention/gradient_load.cuh"
#include "sm90/attention/gradient_warp.cuh"

// A crew's teams that have the gradients of queries, or half of their columns each: 256 keys stay, gradients of their scores come from the
// makers, step after step.

namespace Tributary::Impl::SM90 {

/// A warp: draws the crew's items if the team is the crew's last one, loads keys, and fetches gradients of scores.
template <class Tile>
class GatherLoader : GradientLoader<Tile> {
  using Base = GradientLoader<Tile>;

 public:
  __device__ GatherLoader(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int lane,
                          const CrewSeat& seat)
      : Base(call, shared, scratch, lane), seat_(seat) {}

  __device__ void run() {
    this->see_maps();
    if (seat_.draws())
      draw_and_gather();
    else
      gather();
    this->publish({.batch = -1});
  }

 private:
  using Base::call_;
  using Base::lane_;
  using Base::scratch_;
  using Base::shared_;

  static constexpr std::int32_t ahead = 8;  // steps before an item's end when the next one is drawn

  __device__ void gather() {
    const bool ascending = this->sequences_ascend();
    CrewItems  items(seat_, lane_);
    for (std::int64_t item = items.next(); item < call_.items(); item = items.next())
      this->for_each_piece(item, ascending, [&](const GradientPiece& piece, bool) {
        for (std::int32_t n = start(piece); n > 0; --n) fetch();
      });
  }

  __device__ void draw_and_gather() {
    const bool ascending = this->sequences_ascend();
    draw_for_crew();
    for (std::int64_t item = next_; item < call_.items(); item = next_) {
      bool drawn = false;
      this->for_each_piece(item, ascending, [&](const GradientPiece& piece, bool last) {
        const std::int32_t steps = start(piece);
        for (std::int32_t n = 0; n < steps; ++n) {
          if (last && n == max(steps - ahead, 0)) {  // soon enough, but as late as that: blocks take their turns in the order of items
            draw_for_crew();
            drawn = true;
          }
          fetch();
        }
      });
      if (!drawn) draw_for_crew();
    }
  }

  /// The piece where all warps find it, and its keys; how many steps it has.
  __device__ std::int32_t start(const GradientPiece& piece) {
    const std::int32_t steps = steps_of(call_.problem, this->publish(piece));
    if (steps > 0) load_keys(piece);
    return steps;
  }

  /// An item that the other teams find; all of them must have read the one before.
  __device__ void draw_for_crew() {
    std::int32_t item = 0;
    if (lane_ == 0) {
      while (ptx::ld_acquire(&seat_.state->taken) != seat_.teams_that_follow() * drawn_) __nanosleep(20);
      item = atomicAdd(call_.plan.next_item, 1);
      ptx::st_release(&seat_.state->item, item + 1);
    }
    ++drawn_;
    next_ = __shfl_sync(0xffffffffu, item, 0);
  }

  /// All of the block's keys, in boxes of the makers'.
  __device__ void load_keys(const GradientPiece& piece) {
    ptx::mbarrier_wait(&shared_.keys_empty, this->keys_round_ ^ 1);
    this->keys_round_ ^= 1;
    if (lane_ == 0) {
      constexpr int rows = Tile::keys / crew_parts;
      ptx::mbarrier_arrive_expect_tx(&shared_.keys_full, Tile::key_bytes);
      for (int panel = 0; panel < Tile::panels; ++panel)
        for (int part = 0; part < crew_parts; ++part)
          Base::copy(scratch_ + Tile::keys_offset + panel * Tile::key_panel_bytes + part * (rows * panel_row_bytes), &call_.maps()->key,
                     &shared_.keys_full, seat_.half() * Tile::panels + panel, piece.key_head, piece.key_row + part * rows, piece.batch);
    }
    __syncwarp();
  }

  /// The step's gradients of scores: each lane looks for a maker's, the first one copies them as places become free.
  __device__ void fetch() {
    if (lane_ < crew_parts && seen_ == fetched_)  // never fewer
      while ((seen_ = static_cast<std::uint32_t>(ptx::ld_acquire(&seat_.state->shared[seat_.gradients_of(lane_)]))) == fetched_)
        __nanosleep(20);
    __syncwarp();
    if (lane_ == 0) {
      ptx::fence_proxy_async_global();
      for (int part = 0; part < crew_parts; ++part) {
        std::uint64_t* const full = &shared_.scores_full[part];
        ptx::mbarrier_wait(&shared_.scores_empty[part], score_round_ ^ 1);
        ptx::mbarrier_arrive_expect_tx(full, Tile::score_bytes);
        ptx::cp_async_bulk(scratch_ + Tile::scores_offset + part * Tile::score_bytes, seat_.place(seat_.gradients_of(part), fetched_),
                           Tile::score_bytes, full);
      }
      ptx::st_release(&seat_.state->gathered[seat_.half()], static_cast<std::int32_t>(fetched_));  // those before have been multiplied
    }
    __syncwarp();
    score_round_ ^= 1;
    ++fetched_;
  }

  const CrewSeat& seat_;
  std::uint32_t   score_round_ = 0;
  std::int32_t    next_ = 0, drawn_ = 0;
  std::uint32_t   fetched_ = 0, seen_ = 0;  // steps; seen_: that the lane's maker has shared
};

/// Multiplies: 64 queries x the warpgroup's half of the team's columns.
template <class Tile>
class Gatherer : GradientWarp<Tile> {
  using Base = GradientWarp<Tile>;

 public:
  using Element = typename Tile::Element;
  using Base::Base;

  __device__ void run() {
    this->for_each_piece([this](const GradientPiece& piece) { gather(piece); });
  }

 private:
  using Base::shared_;
  using Base::sums;

  __device__ void gather(const GradientPiece& piece) {
    const std::int32_t steps = steps_of(this->call_.problem, piece);
    if (steps == 0) return;
    this->wait_for_keys();
    for (std::int32_t n = 0; n < steps; ++n, adder_at_.next(), score_round_ ^= 1) {
      float sum[sums];
#pragma unroll
      for (int part = 0; part < crew_parts; ++part) {
        ptx::mbarrier_wait(&shared_.scores_full[part], score_round_);
        __syncwarp();
        multiply(sum, part);
        if (part == 0) continue;
        ptx::wgmma_wait_group<1>();
        Base::release(&shared_.scores_empty[part - 1]);
      }
      ptx::wgmma_wait_group<0>();
      ptx::pin(sum);
      Base::release(&shared_.scores_empty[crew_parts - 1]);
      this->hand_over(sum, adder_at_.slot);
    }
    Base::release(&shared_.keys_empty);
  }

  /// sum (+)= a part's gradients of scores x the warpgroup's columns of its keys; issued, not waited for.
  __device__ void multiply(float (&sum)[sums], int part) const {
    constexpr int       rows       = Tile::keys / crew_parts;
    const int           columns_at = Tile::keys_offset + Base::group() * (Tile::panels / 2) * Tile::key_panel_bytes;
    const std::uint64_t a          = ptx::transposed_descriptor(this->address(Base::scores_at(part)), Tile::score_bytes);
    const std::uint64_t b = ptx::transposed_descriptor(this->address(columns_at + part * (rows * panel_row_bytes)), Tile::key_panel_bytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < rows / 16; ++step) {
      const auto across = static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16));
      ptx::WgmmaAcross<Element, Base::columns>::issue(sum, a + across, b + across, part != 0 || step != 0);
    }
    ptx::wgmma_commit_group();
  }

  std::uint32_t              score_round_ = 0;
  RingPosition<Tile::adders> adder_at_;
};

}  // namespace Tributary::Impl::SM90
