#pragma once
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "instructions.hpp"

// The state of a launch: teams of warps of lanes, and what goes on beside them.

namespace TributaryTest::Emulator {

inline constexpr int largest_scratch = 240 * 1024;

enum class Collective { syncwarp, shuffle, shuffle_xor, shuffle_up, ballot, reduce_max, any, commit_group, wait_group };

/// How far each thread of a team had come.
using Clock = std::vector<std::uint32_t>;

/// A thread: a fiber, and what the emulator remembers of it.
struct Lane {
  int                                  team = 0, warp = 0, lane = 0;
  void*                                stack_pointer = nullptr;
  bool                                 ready = true, ended = false;
  const void*                          waits_for  = nullptr;  // an mbarrier, for messages
  Collective                           collective = Collective::syncwarp;
  int                                  argument   = 0;
  std::uint64_t                        value = 0, result = 0;
  std::map<const std::uint64_t*, long> next_phase;  // to wait for at each mbarrier
  // wgmma.cpp
  long issued = 0;
  bool fenced = false;
  // copies.cpp and accesses.cpp
  std::vector<int> unfenced, unfenced_loads;          // words of shared memory written, or read, since the last proxy fence
  bool             acquired = false, copied = false;  // since the last fence of the global proxy
  // races.cpp: what comes before the thread's next access; before its last fence; before its next access after a fence to come
  Clock clock, fenced_clock, pending_clock;
};

/// Registers that products in flight add to: 16 rows of a warp.
struct Accumulator {
  float*             registers[32] = {};
  int                count         = 0;  // of a lane
  int                pending       = 0;  // products
  std::vector<float> values;
};

/// Bytes of shared memory, by address.
struct Range {
  std::uint32_t begin, end;

  bool meets(const Range& other) const { return begin < other.end && other.begin < end; }
};

/// A wgmma as one warp issued it.
struct IssuedProduct {
  Product                      product;
  int                          lanes = 0;  // that have issued it
  std::shared_ptr<Accumulator> accumulator;
  const std::uint32_t*         register_a[32]   = {};
  std::uint32_t                copy_of_a[32][4] = {};
  std::vector<Range>           reads;
  bool                         done  = false;
  long                         group = -1;  // -1: not committed
};

struct Warp {
  Lane                                      lanes[32];
  std::uint32_t                             ready     = 0xffffffffu;
  std::uint32_t                             arrived   = 0;  // at the current collective
  double                                    weight    = 1;
  int                                       registers = 0;
  std::deque<IssuedProduct>                 products;
  long                                      first_product = 0;  // number of the deque's first one
  long                                      groups        = 0;  // committed
  std::vector<std::shared_ptr<Accumulator>> accumulators;
  int                                       doubtful = -1;  // whose store a load of this optimistic warp met
};

struct MemoryBarrier {
  std::uint64_t*                               at;
  int                                          count, pending;
  long                                         bytes = 0;  // expected
  long                                         phase = 0;
  std::map<int, long>                          arrivals_of_warp;
  std::vector<std::pair<Lane*, std::uint32_t>> waiting;  // with the parity
  Clock                                        arriving, completed;
};

struct NamedBarrier {
  int                expected = 0;
  std::vector<Lane*> arrived, waiting;
  Clock              arriving;
};

/// A box on its way to shared memory.
struct BoxCopy {
  int            team;
  TensorMap      map;
  MemoryBarrier* barrier;
  int            at[4];
  Range          to;
};

/// A piece of shared memory on its way to device memory.
struct BulkCopy {
  Lane*              lane;
  Range              from;
  const float*       source;
  float*             to;
  int                count;
  bool               adds, committed = false, read = false;
  int                written = 0;
  std::vector<float> values;  // once read

  bool writes_into(const float* begin, int floats) const { return to < begin + floats && begin < to + count; }
};

/// Some bytes on their way to shared memory by a thread's own copy, or its arrival once its earlier ones have come.
struct ThreadCopy {
  Lane*          lane;
  unsigned char* to;
  const void*    from;  // null: zeros
  int            bytes;
  MemoryBarrier* barrier;  // null: a copy
};

struct Team {
  Member                             member{};
  std::vector<std::unique_ptr<Warp>> warps;
  unsigned char*                     memory = nullptr;
  std::uint32_t                      base   = 0;  // shared address of the first byte
  int                                bytes  = 0;
  int                                live   = 0;  // threads
  long                               start  = 0;
  std::deque<MemoryBarrier>          barriers;
  NamedBarrier                       named[16];
  bool                               any[16] = {};  // a thread at the barrier has said yes
  std::map<const void*, int>         doubtful;      // where an optimistic warp swapped in what it should not have
  std::map<const void*, Clock>       atomics;       // released to a place by atomic operations
  std::vector<std::uint16_t>         writer = std::vector<std::uint16_t>(largest_scratch / 4);  // 1 + thread of an unfenced word
  std::vector<std::uint16_t>         reader = writer;  // the same of loads: of the last thread, if they are to be fenced
};

struct Machine {
  Settings                           settings;
  Counts                             counts{};
  std::mt19937_64                    random;
  std::vector<std::unique_ptr<Team>> teams;
  std::deque<BoxCopy>                boxes;
  std::deque<BulkCopy>               bulk_copies;
  std::deque<ThreadCopy>             thread_copies;
  std::vector<Lane*>                 sleeping;
  int                                fruitless = 0;  // times that sleeping lanes were woken since something happened that they may wait for
  Lane*                              lane      = nullptr;  // that runs; null in the scheduler
  unsigned char*                     memory    = nullptr;  // of all teams

  std::uint64_t draw(std::uint64_t choices) { return random() % choices; }
  Team&         team(const Lane& of) { return *teams[static_cast<std::size_t>(of.team)]; }
  Warp&         warp(const Lane& of) { return *team(of).warps[static_cast<std::size_t>(of.warp)]; }
};
extern Machine machine;

// Fibers: the current one stops until it is woken; goes on later; becomes ready.
void block();
void yield();
void wake(Lane& lane);

/// Waits until all lanes of the warp have come; the last one calls `complete`, then all go on.
void meet(Collective collective, int argument, std::uint64_t value);
/// What a committed group and a wait for one mean: wgmma.cpp.
void committed(Warp& warp, Team& team, int warp_number);
void waited(Warp& warp, Team& team, int warp_number, int pending);
void execute(Team& team, int warp_number, IssuedProduct& product);

/// One more arrival or delivery: completes the phase if it was the last.
void           complete(MemoryBarrier& barrier);
MemoryBarrier& barrier_at(Team& team, const std::uint64_t* barrier);

/// The bytes at a shared address; refused outside the scratch.
unsigned char* bytes_at(Team& team, std::uint32_t address, std::uint32_t count);

/// races.cpp: threads that order their accesses, and the check of an access.
void start_clocks();
void release_to(Clock& to);
void acquire_from(Lane& lane, const Clock& from);
void synchronise(Warp& warp);
void order_atomic(const void* at, bool stores);
void change_atomically(const void* at);  // an exchange, or a swap that succeeds
enum class Access { load, store, atomic };
void check_race(const void* at, long bytes, Access access);

/// A step of the copy engine, if it takes one now; and where nothing else can go on, whether a box could be delivered.
void step_copies();
bool deliver_any_box();

// Checks against what goes on at the same time.
void require_no_box(const Team& team, const Range& range, const char* what);
void require_no_reader(const Team& team, const Range& range, const char* what);
/// Words that the copy engine or the tensor cores touch must not have been written without a proxy fence.
void require_fenced(const Team& team, const Range& range, const char* what);
void require_loads_fenced(const Team& team, const Range& range);

}  // namespace TributaryTest::Emulator
