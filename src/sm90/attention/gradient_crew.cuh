#pragma once
#include "sm90/attention/gradient_tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/global.cuh"
#include "sm90/ptx/tma.cuh"

// Rows beyond 128: teams work on a block of 256 keys together, five of them, or ten beyond 256.  Makers have 64 keys each and make the
// gradients of these keys and values; beyond 256, where a register file holds only one of the two, makers come in pairs
// (gradient_long.cuh), and weights go from the one to the other.  The last teams gather the gradients of scores, multiply them with all
// keys, and hand over a part of the gradient of queries where every team would hand over one of its own: memory takes additions of four
// times as many bytes no faster than tensor cores make them.  Beyond 256 each has half of the columns.  What teams hand each other passes
// through device memory, but stays in the L2, and goes one way: a maker waits for those that read it only when it is eight steps ahead.
//
// Teams join in the order in which they start, and a crew draws no item before its last team runs: wherever there is room for one crew,
// what anyone waits for is being worked on.  Where other work keeps that room for itself, the first crew waits until it ends.

namespace Tributary::Impl::SM90 {

inline constexpr int most_makers = crew_makers(512), most_halves = crew_halves(512);

/// Of a crew, in device memory; zeros at first.
struct alignas(128) CrewState {
  std::int32_t item;   // the number of the one that is worked on, plus 1; grows
  std::int32_t taken;  // how often another team has read it
  // Counts of steps of all its items, which may pass 2^32.
  std::int32_t shared[most_makers];        // by a maker: what it shares of them is in its places
  std::int32_t gathered[most_halves];      // by a team that gathers: gradients of scores have left their places
  std::int32_t weights_taken[crew_parts];  // by a maker that differentiates: so have weights
};

/// Places for what a maker shares: they are read some two steps after they were made.
inline constexpr int crew_places = 8, crew_place_bytes = 64 * 64 * 2;
static_assert((crew_places & (crew_places - 1)) == 0);

/// A team's place in its crew.
struct CrewSeat {
  CrewState*     state;
  unsigned char* places;  // of the crew's first maker
  int            halves;
  int            number;  // of the makers first those that share weights, where there are pairs; then come those that gather

  __device__ CrewSeat(const AttentionBackwardPlan& plan, int dim, std::int32_t ticket)
      : state(static_cast<CrewState*>(plan.crews) + ticket / crew_teams(dim)),
        places(plan.places + ticket / crew_teams(dim) * std::int64_t{crew_makers(dim) * crew_places * crew_place_bytes}),
        halves(crew_halves(dim)),
        number(ticket % crew_teams(dim)) {}

  __device__ int  makers() const { return crew_parts * halves; }
  __device__ bool gathers() const { return number >= makers(); }
  __device__ bool draws() const { return number == teams_that_follow(); }
  __device__ int  teams_that_follow() const { return makers() + halves - 1; }
  __device__ int  half() const { return number - makers(); }                             // of a team that gathers
  __device__ int  part() const { return number % crew_parts; }                           // of the block's keys, of a maker
  __device__ int  gradients_of(int part) const { return makers() - crew_parts + part; }  // the maker that shares a part's
  __device__ bool shares_weights() const { return halves > 1 && number < crew_parts; }

  __device__ unsigned char* place(int maker, std::uint32_t step) const {
    return places + (maker * crew_places + static_cast<int>(step % crew_places)) * crew_place_bytes;
  }

  /// Of a maker's `done` steps, how many have not left their places.
  __device__ std::uint32_t in_use(std::uint32_t done) const {
    const auto left = [&](const std::int32_t& taken) { return done - static_cast<std::uint32_t>(ptx::ld_acquire(&taken)); };
    if (shares_weights()) return left(state->weights_taken[number]);
    std::uint32_t most = left(state->gathered[0]);
    for (int half = 1; half < halves; ++half) most = max(most, left(state->gathered[half]));
    return most;
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

/// A crew's items, as its last team draws them; a warp of another one.
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

/// Puts what a maker shares where its crew finds it; a thread.
///
/// \param from, full, empty  the stages that it lies in
template <class Tile, int Stages>
__device__ void share_with_crew(const AttentionBackwardCall& call, GradientShared<Tile>& shared, const CrewSeat& seat,
                                const unsigned char* from, std::uint64_t (&full)[Stages], std::uint64_t (&empty)[Stages]) {
  RingPosition<Stages> at;
  std::uint32_t        done = 0, free = crew_places;  // steps; places that are known to be free
  for (RingPosition<2> piece_at;; piece_at.next()) {
    ptx::mbarrier_wait(&shared.piece_full[piece_at.slot], piece_at.round);
    const GradientPiece& piece = shared.pieces[piece_at.slot];
    if (piece.batch < 0) return;
    for (std::int32_t n = steps_of(call.problem, piece); n > 0; --n, at.next()) {
      if (free == 0) {
        while ((free = crew_places - seat.in_use(done)) == 0) __nanosleep(20);
        ptx::fence_proxy_async_global();
      }
      --free;
      ptx::mbarrier_wait(&full[at.slot], at.round);
      ptx::cp_async_bulk(seat.place(seat.number, done), from + at.slot * Tile::score_bytes, crew_place_bytes);
      ptx::cp_async_bulk_commit_group();
      ptx::cp_async_bulk_wait_read();
      ptx::mbarrier_arrive(&empty[at.slot]);
      ptx::cp_async_bulk_wait();
      ptx::fence_proxy_async_global();
      ptx::st_release(&seat.state->shared[seat.number], static_cast<std::int32_t>(++done));
    }
    ptx::mbarrier_arrive(&shared.piece_empty[piece_at.slot]);
  }
}

}  // namespace Tributary::Impl::SM90
