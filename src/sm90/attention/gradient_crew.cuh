#pragma once
#include "sm90/attention/gradient_tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/global.cuh"
#include "sm90/ptx/tma.cuh"

// Rows beyond 128: five teams work on a block of 256 keys together.  Four makers have 64 keys each and make the gradients of these keys and
// values.  The last team gathers their gradients of scores, multiplies them with all keys, and hands over a part of the gradient of queries
// where every team would hand over one of its own: memory takes additions of four times as many bytes no faster than tensor cores make
// them.  Gradients of scores pass through device memory, but stay in the L2.
//
// Teams join in the order in which they start, and a crew draws no item before its last team runs: wherever there is room for one crew,
// what anyone waits for is being worked on.  Where other work keeps that room for itself, the first crew waits until it ends.

namespace Tributary::Impl::SM90 {

/// Of a crew, in device memory; zeros at first.
struct alignas(128) CrewState {
  std::int32_t item;   // the number of the one that is worked on and 1; grows
  std::int32_t taken;  // how often a maker has read it
  // Steps of all its items, which may pass 2^32: whose gradients of scores have left their places; whose a maker has put there.
  std::int32_t gathered;
  std::int32_t shared[crew_makers];
};

/// Places for a maker's gradients of scores: they are read some two steps after they were made.
inline constexpr int crew_places = 8, crew_place_bytes = 64 * 64 * 2;
static_assert((crew_places & (crew_places - 1)) == 0);

/// A team's place in its crew.
struct CrewSeat {
  CrewState*     state;
  unsigned char* places;  // of the crew's first maker
  int            number;  // of the maker; crew_makers: gathers

  __device__ CrewSeat(const AttentionBackwardPlan& plan, std::int32_t ticket)
      : state(static_cast<CrewState*>(plan.crews) + ticket / crew_teams),
        places(plan.places + ticket / crew_teams * std::int64_t{crew_makers * crew_places * crew_place_bytes}),
        number(ticket % crew_teams) {}

  __device__ bool           gathers() const { return number == crew_makers; }
  __device__ unsigned char* place(int maker, std::uint32_t step) const {
    return places + (maker * crew_places + static_cast<int>(step % crew_places)) * crew_place_bytes;
  }
};

/// Before the first team starts.
struct StartCrews {
  CrewState*    crews;
  std::int32_t* tickets;

  KOKKOS_FUNCTION void operator()(int crew) const {
    crews[crew] = {};
    if (crew == 0) *tickets = 0;
  }
};

/// A maker's items, as the team that gathers draws them; a warp.
class CrewItems {
 public:
  __device__ CrewItems(const CrewSeat& seat, int lane) : seat_(seat), lane_(lane) {}

  __device__ std::int32_t next() {
    std::int32_t item = 0;
    if (lane_ == 0) {
      while ((item = ptx::ld_acquire(&seat_.state->item)) == last_) __nanosleep(20);
      atomicAdd(&seat_.state->taken, 1);
    }
    last_ = __shfl_sync(0xffffffffu, item, 0);
    return last_ - 1;
  }

 private:
  const CrewSeat& seat_;
  const int       lane_;
  std::int32_t    last_ = 0;
};

/// Puts a maker's gradients of scores where its crew finds them; a thread.
template <class Tile>
__device__ void share_with_crew(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch,
                                const CrewSeat& seat) {
  RingPosition<Tile::score_stages> score_at;
  std::uint32_t                    done = 0, gathered = 0;  // steps
  for (RingPosition<2> piece_at;; piece_at.next()) {
    ptx::mbarrier_wait(&shared.piece_full[piece_at.slot], piece_at.round);
    const GradientPiece& piece = shared.pieces[piece_at.slot];
    if (piece.batch < 0) return;
    for (std::int32_t n = steps_of(call.problem, piece); n > 0; --n, score_at.next()) {
      if (done - gathered >= crew_places) {
        while (done - (gathered = static_cast<std::uint32_t>(ptx::ld_acquire(&seat.state->gathered))) >= crew_places) __nanosleep(20);
        ptx::fence_proxy_async_global();
      }
      ptx::mbarrier_wait(&shared.scores_full[score_at.slot], score_at.round);
      ptx::cp_async_bulk(seat.place(seat.number, done),
                         scratch + Tile::scores_offset + score_at.slot * Tile::score_bytes + Tile::gradients_place, crew_place_bytes);
      ptx::cp_async_bulk_commit_group();
      ptx::cp_async_bulk_wait_read();
      ptx::mbarrier_arrive(&shared.scores_empty[score_at.slot]);
      ptx::cp_async_bulk_wait();
      ptx::fence_proxy_async_global();
      ptx::st_release(&seat.state->shared[seat.number], static_cast<std::int32_t>(++done));
    }
    ptx::mbarrier_arrive(&shared.piece_empty[piece_at.slot]);
  }
}

}  // namespace Tributary::Impl::SM90
