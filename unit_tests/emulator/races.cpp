#include <algorithm>

#include "machine.hpp"

// Races of ordinary accesses, where a launch asks for it: two accesses of a word, one of them a store, that no barrier, syncwarp or fence
// orders.  Every thread has a vector clock, as in FastTrack (Flanagan, Freund 2009).  Atomic operations and volatile loads do not race with
// each other, and order what a fence separates from them.  Shuffles and votes order nothing.
//
// An optimistic warp loads, then compares and swaps a word that says whether that was in vain.  Its loads may meet atomic operations; if
// they meet stores and the swap succeeds all the same, nobody else may see the word.

namespace TributaryTest::Emulator {
namespace {

std::uint32_t threads_of_team() { return static_cast<std::uint32_t>(machine.teams.front()->warps.size()) * 32; }
std::uint32_t number_of(const Lane& lane) { return static_cast<std::uint32_t>(lane.warp * 32 + lane.lane); }

void join(Clock& to, const Clock& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (std::size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

/// Accesses of a word that are not ordered among themselves: none, one, or the latest of every thread.
class Accesses {
 public:
  void add(std::uint32_t thread, const Clock& now) {
    if (all_ != nullptr) {
      (*all_)[thread] = now[thread];
      return;
    }
    if (clock_ == 0 || thread == thread_ || clock_ <= now[thread_]) {
      thread_ = thread;
      clock_  = now[thread];
      return;
    }
    all_             = std::make_unique<Clock>(now.size());
    (*all_)[thread_] = clock_;
    (*all_)[thread]  = now[thread];
  }
  /// Those of a thread that are not ordered before now; -1: there are none.
  int not_before(const Clock& now) const {
    if (all_ == nullptr) return clock_ > (clock_ == 0 ? 0 : now[thread_]) ? static_cast<int>(thread_) : -1;
    for (std::size_t i = 0; i < now.size(); ++i)
      if ((*all_)[i] > now[i]) return static_cast<int>(i);
    return -1;
  }
  void clear() {
    clock_ = 0;
    all_.reset();
  }

 private:
  std::uint32_t          thread_ = 0, clock_ = 0;
  std::unique_ptr<Clock> all_;
};

struct Word {
  int      team = -1;
  Accesses stores, loads, atomics;
};

constexpr long page_bytes = 4096;  // between whose like device memory lies

std::vector<Word> words;         // of all teams' shared memory, then of the watched device memory
std::size_t       shared_words;  // of one team

Word* word_at(const void* at, long offset) {
  const auto* const byte      = static_cast<const unsigned char*>(at) + offset;
  const long        in_memory = byte - machine.memory;
  if (in_memory >= 0 && in_memory < static_cast<long>(machine.teams.size()) * largest_scratch) {
    const auto team = static_cast<std::size_t>(in_memory / largest_scratch);
    return &words[team * shared_words + static_cast<std::size_t>(in_memory % largest_scratch) / 4];
  }
  std::size_t first = machine.teams.size() * shared_words;
  for (const Memory& memory : machine.settings.watched) {
    const long in_it = byte - static_cast<const unsigned char*>(memory.begin);
    if (in_it >= 0 && in_it < memory.bytes) return &words[first + static_cast<std::size_t>(in_it) / 4];
    if (in_it >= -page_bytes && in_it < memory.bytes + page_bytes) fail("an access beyond device memory");
    first += static_cast<std::size_t>(memory.bytes + 3) / 4;
  }
  return nullptr;
}

void refuse(const void* at, const char* what, const char* other, int thread) {
  const long in_memory = static_cast<const unsigned char*>(at) - machine.memory;
  const bool shared    = in_memory >= 0 && in_memory < static_cast<long>(machine.teams.size()) * largest_scratch;
  fail("a race: ", what, " at ", shared ? "+" : "device memory ", shared ? in_memory % largest_scratch : 0, " and ", other, " of warp ",
       thread / 32, " lane ", thread % 32, ", which nothing orders");
}

}  // namespace

void start_clocks() {
  words.clear();
  if (!machine.settings.races) return;
  const std::uint32_t threads = threads_of_team();
  shared_words                = static_cast<std::size_t>(machine.teams.front()->bytes + 3) / 4;
  std::size_t count           = machine.teams.size() * shared_words;
  for (const Memory& memory : machine.settings.watched) count += static_cast<std::size_t>(memory.bytes + 3) / 4;
  words.resize(count);
  for (const auto& team : machine.teams)
    for (const auto& warp : team->warps)
      for (Lane& lane : warp->lanes) {
        lane.clock.assign(threads, 0);
        lane.fenced_clock.assign(threads, 0);
        lane.pending_clock.assign(threads, 0);
        lane.clock[number_of(lane)] = 1;
      }
}

void release_to(Clock& to) {
  if (!machine.settings.races) return;
  Lane& lane = *machine.lane;
  join(to, lane.clock);
  ++lane.clock[number_of(lane)];
}

void acquire_from(Lane& lane, const Clock& from) {
  if (machine.settings.races) join(lane.clock, from);
}

void synchronise(Warp& warp) {
  if (!machine.settings.races) return;
  Clock all;
  for (const Lane& lane : warp.lanes) join(all, lane.clock);
  for (Lane& lane : warp.lanes) {
    lane.clock = all;
    ++lane.clock[number_of(lane)];
  }
}

void thread_fence() {
  if (!machine.settings.races) return;
  Lane& lane = *machine.lane;
  join(lane.clock, lane.pending_clock);
  lane.fenced_clock = lane.clock;
  ++lane.clock[number_of(lane)];
}

void check_race(const void* at, long bytes, Access access) {
  if (!machine.settings.races) return;
  Lane&      lane       = *machine.lane;
  Warp&      warp       = machine.warp(lane);
  const bool optimistic = lane.warp == machine.settings.optimistic_warp;
  for (long offset = 0; offset < bytes; offset += 4) {
    Word* const word = word_at(at, offset);
    if (word == nullptr) return;
    if (word->team < 0) word->team = lane.team;
    if (word->team != lane.team) fail("a race: two teams use the same device memory");
    const std::uint32_t thread = number_of(lane);
    if (optimistic && access == Access::load) {
      if (const int other = word->stores.not_before(lane.clock); other >= 0) warp.doubtful = other;
      continue;
    }
    if (const int other = word->stores.not_before(lane.clock); other >= 0)
      refuse(at, access == Access::load ? "a load" : (access == Access::store ? "a store" : "an atomic operation"), "a store", other);
    if (access == Access::load) {
      if (const int other = word->atomics.not_before(lane.clock); other >= 0) refuse(at, "a load", "an atomic operation", other);
      word->loads.add(thread, lane.clock);
      continue;
    }
    if (const int other = word->loads.not_before(lane.clock); other >= 0)
      refuse(at, access == Access::store ? "a store" : "an atomic operation", "a load", other);
    if (access == Access::atomic) {
      word->atomics.add(thread, lane.clock);
      continue;
    }
    if (const int other = word->atomics.not_before(lane.clock); other >= 0) refuse(at, "a store", "an atomic operation", other);
    word->loads.clear();
    word->atomics.clear();
    word->stores.clear();
    word->stores.add(thread, lane.clock);
  }
}

void order_atomic(const void* at, bool stores) {
  if (!machine.settings.races) return;
  Lane&  lane     = *machine.lane;
  Clock& location = machine.team(lane).atomics[at];
  join(lane.pending_clock, location);
  if (stores)
    join(location, lane.fenced_clock);
  else if (lane.warp == machine.settings.optimistic_warp)
    machine.warp(lane).doubtful = -1;  // another attempt
  else if (const auto doubt = machine.team(lane).doubtful.find(at); doubt != machine.team(lane).doubtful.end())
    fail("a race: a load of what was swapped in after loads that nothing orders after stores of warp ", doubt->second / 32, " lane ",
         doubt->second % 32);
}

void change_atomically(const void* at) {
  if (!machine.settings.races) return;
  const Lane& lane  = *machine.lane;
  Team&       team  = machine.team(lane);
  const int   other = machine.warp(lane).doubtful;
  team.doubtful.erase(at);
  if (other >= 0) team.doubtful[at] = other;
}

}  // namespace TributaryTest::Emulator
