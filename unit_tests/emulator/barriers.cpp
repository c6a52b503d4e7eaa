#include <algorithm>

#include "machine.hpp"

// How threads meet: collectives of a warp, mbarriers, named barriers.  Refused are collectives in which lanes differ, arrivals beyond a
// phase's count, and waits whose parity means another phase than the one that the thread is at.

namespace TributaryTest::Emulator {

void meet(Collective collective, int argument, std::uint64_t value) {
  Lane& lane = *machine.lane;
  Warp& warp = machine.warp(lane);
  for (const Lane& other : warp.lanes) {
    if (other.ended) fail("a collective of a warp in which a lane has ended");
    const bool same = other.collective == collective && (collective == Collective::shuffle || other.argument == argument);
    if ((warp.arrived >> other.lane & 1) != 0 && !same) fail("lanes of a warp are in different collectives");
  }
  lane.collective = collective;
  lane.argument   = argument;
  lane.value      = value;
  warp.arrived |= 1u << lane.lane;
  if (warp.arrived != 0xffffffffu) return block();
  warp.arrived = 0;
  switch (collective) {
    case Collective::shuffle:
      for (Lane& to : warp.lanes) to.result = warp.lanes[to.argument & 31].value;
      break;
    case Collective::shuffle_xor:
      for (Lane& to : warp.lanes) to.result = warp.lanes[(to.lane ^ to.argument) & 31].value;
      break;
    case Collective::shuffle_up:
      for (Lane& to : warp.lanes) to.result = warp.lanes[to.lane < argument ? to.lane : to.lane - argument].value;
      break;
    case Collective::ballot: {
      std::uint64_t mask = 0;
      for (const Lane& from : warp.lanes) mask |= from.value << from.lane;
      for (Lane& to : warp.lanes) to.result = mask;
      break;
    }
    case Collective::reduce_max: {
      std::uint64_t most = 0;
      for (const Lane& from : warp.lanes) most = std::max(most, from.value);
      for (Lane& to : warp.lanes) to.result = most;
      break;
    }
    case Collective::any: {
      const bool some = std::any_of(warp.lanes, warp.lanes + 32, [](const Lane& from) { return from.value != 0; });
      for (Lane& to : warp.lanes) to.result = some ? 1 : 0;
      break;
    }
    case Collective::commit_group: committed(warp, machine.team(lane), lane.warp); break;
    case Collective::wait_group: waited(warp, machine.team(lane), lane.warp, argument); break;
    case Collective::syncwarp: synchronise(warp); break;
  }
  for (Lane& other : warp.lanes)
    if (&other != &lane) wake(other);
}

void syncwarp() {
  if (machine.settings.omission.of != Omission::Of::syncwarp) meet(Collective::syncwarp, 0, 0);
}

std::uint64_t shuffle(std::uint64_t value, int lane) {
  meet(Collective::shuffle, lane, value);
  return machine.lane->result;
}

std::uint64_t shuffle_xor(std::uint64_t value, int mask) {
  meet(Collective::shuffle_xor, mask, value);
  return machine.lane->result;
}

std::uint64_t shuffle_up(std::uint64_t value, int distance) {
  meet(Collective::shuffle_up, distance, value);
  return machine.lane->result;
}

std::uint64_t shuffle_down(std::uint64_t value, int distance) {
  const int lane = machine.lane->lane;
  return shuffle(value, lane + distance < 32 ? lane + distance : lane);
}

std::uint32_t ballot(bool value) {
  meet(Collective::ballot, 0, value ? 1 : 0);
  return static_cast<std::uint32_t>(machine.lane->result);
}

std::uint32_t reduce_max(std::uint32_t value) {
  meet(Collective::reduce_max, 0, value);
  return static_cast<std::uint32_t>(machine.lane->result);
}

bool any(bool value) {
  meet(Collective::any, 0, value ? 1 : 0);
  return machine.lane->result != 0;
}

MemoryBarrier& barrier_at(Team& team, const std::uint64_t* barrier) {
  for (MemoryBarrier& candidate : team.barriers)
    if (candidate.at == barrier) return candidate;
  fail("an mbarrier that was not initialised");
}

void mbarrier_init(std::uint64_t* barrier, int arrivals) {
  Team& team = machine.team(*machine.lane);
  if (shared_address(barrier) % 8 != 0) fail("an mbarrier that is not aligned");
  for (const MemoryBarrier& other : team.barriers)
    if (other.at == barrier) fail("an mbarrier initialised twice");
  MemoryBarrier made{};
  made.at    = barrier;
  made.count = made.pending = arrivals;
  team.barriers.push_back(std::move(made));
}

void complete(MemoryBarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending   = barrier.count;
  barrier.completed = barrier.arriving;
  std::erase_if(barrier.waiting, [&](const auto& waiting) {
    const bool over = (barrier.phase & 1) != waiting.second;
    if (over) wake(*waiting.first);
    return over;
  });
}

void mbarrier_arrive(std::uint64_t* barrier, int bytes) {
  MemoryBarrier& at = barrier_at(machine.team(*machine.lane), barrier);
  if (bytes < 0 || bytes >= 1 << 20) fail("mbarrier: ", bytes, " bytes expected");
  if (at.pending <= 0) fail("mbarrier: more arrivals than it counts");
  at.bytes += bytes;
  ++at.arrivals_of_warp[machine.lane->warp];
  --at.pending;
  machine.fruitless = 0;
  release_to(at.arriving);
  complete(at);
}

namespace {

/// The phase, counted from 0, that a wait must mean.  A warp that arrives at the barrier too may skip waits and means its own latest
/// phase or the next; any other one waits for one phase after the other, with parity 1 first if the phase before counts as complete.
long phase_meant(Lane& lane, const MemoryBarrier& barrier, std::uint32_t parity) {
  const auto own = barrier.arrivals_of_warp.find(lane.warp);
  if (own != barrier.arrivals_of_warp.end()) return own->second - 1 + ((own->second - 1) % 2 == parity ? 0 : 1);
  const auto [next, first] = lane.next_phase.try_emplace(barrier.at, parity == 1 ? -1 : 0);
  const long phase         = next->second++;
  if (static_cast<std::uint32_t>(phase & 1) != parity) fail("mbarrier: the parities that a thread waits for do not alternate");
  return phase;
}

}  // namespace

void mbarrier_wait(std::uint64_t* barrier, std::uint32_t parity) {
  Lane&          lane = *machine.lane;
  MemoryBarrier& at   = barrier_at(machine.team(lane), barrier);
  if (parity > 1) fail("mbarrier: parity ", parity);
  const Omission& omission = machine.settings.omission;
  const auto&     all      = machine.team(lane).barriers;
  if (omission.of == Omission::Of::mbarrier_wait && (omission.barriers == 0 || static_cast<int>(all.size()) == omission.barriers) &&
      &at == &all.rbegin()[omission.number])
    return;
  const bool checked = !machine.settings.skips || at.arrivals_of_warp.contains(lane.warp);
  const long meant   = checked ? phase_meant(lane, at, parity) : 0;
  if (machine.draw(8) == 0) yield();
  if ((at.phase & 1) == parity) {
    at.waiting.push_back({&lane, parity});
    lane.waits_for = barrier;
    block();
  }
  if (checked && at.phase != meant + 1) fail("mbarrier: a wait for phase ", meant, " ends, but the barrier is in phase ", at.phase);
  acquire_from(lane, at.completed);
}

namespace {

void arrive_at_named(int number, int threads, bool waits) {
  Lane&           lane     = *machine.lane;
  const Omission& omission = machine.settings.omission;
  if (omission.of == Omission::Of::named_barrier && omission.number == number) return;
  if (number < 0 || number > 15 || threads % 32 != 0) fail("named barrier ", number, " of ", threads, " threads");
  NamedBarrier& barrier = machine.team(lane).named[number];
  if (barrier.expected != 0 && barrier.expected != threads) fail("named barrier ", number, " with two counts");
  if (std::find(barrier.arrived.begin(), barrier.arrived.end(), &lane) != barrier.arrived.end())
    fail("a thread arrives twice at named barrier ", number);
  barrier.expected = threads;
  barrier.arrived.push_back(&lane);
  release_to(barrier.arriving);
  if (static_cast<int>(barrier.arrived.size()) == threads) {
    for (Lane* const waiting : barrier.waiting) {
      acquire_from(*waiting, barrier.arriving);
      wake(*waiting);
    }
    if (waits) acquire_from(lane, barrier.arriving);
    barrier = {};
  } else if (waits) {
    barrier.waiting.push_back(&lane);
    block();
  }
}

}  // namespace

void bar_arrive(int barrier, int threads) { arrive_at_named(barrier, threads, false); }
void bar_sync(int barrier, int threads) { arrive_at_named(barrier, threads, true); }

bool bar_red_or(int barrier, int threads, bool yes) {
  bool& any = machine.team(*machine.lane).any[barrier];
  if (yes) any = true;
  bar_sync(barrier, threads);
  const bool result = any;
  bar_sync(barrier, threads);
  any = false;  // nobody says yes again before all have come
  bar_sync(barrier, threads);
  return result;
}

void syncthreads() { bar_sync(0, static_cast<int>(machine.team(*machine.lane).warps.size()) * 32); }

}  // namespace TributaryTest::Emulator
