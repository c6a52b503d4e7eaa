#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "machine.hpp"

// Threads as fibers, and the scheduler: one step runs every ready lane of one warp up to its next wait.  Lanes of a warp begin in a
// drawn order, so nothing holds between them that no collective orders.

namespace TributaryTest::Emulator {

Machine machine;

namespace {

constexpr std::size_t stack_bytes = 64 * 1024, page_bytes = 4096;

const std::function<void(const Member&)>* body_of_launch;
void*                                     scheduler_stack;
std::string                               failure;

}  // namespace

// Saves what a call must keep, changes stacks, and goes on there.
extern "C" void tributary_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl tributary_emulator_switch
tributary_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace {

void leave_fiber() { tributary_emulator_switch(&machine.lane->stack_pointer, scheduler_stack); }

/// Where everything stands, for a failure's message.
std::string picture() {
  std::ostringstream text;
  for (const auto& team : machine.teams) {
    text << "\n  team " << team->member.rank << ":";
    for (std::size_t w = 0; w < team->warps.size(); ++w) {
      const Warp& warp  = *team->warps[w];
      const auto  ended = std::count_if(warp.lanes, warp.lanes + 32, [](const Lane& lane) { return lane.ended; });
      text << " warp " << w << " [ended " << ended << " ready " << std::hex << warp.ready << " in a collective " << warp.arrived
           << std::dec;
      if (warp.lanes[0].waits_for != nullptr)
        text << " lane 0 waits at +" << static_cast<const unsigned char*>(warp.lanes[0].waits_for) - team->memory;
      text << " products " << warp.products.size() << "]";
    }
    for (const MemoryBarrier& barrier : team->barriers)
      text << "\n    mbarrier +" << reinterpret_cast<unsigned char*>(barrier.at) - team->memory << ": " << barrier.pending << " of "
           << barrier.count << " to come, " << barrier.bytes << " bytes, phase " << barrier.phase;
  }
  return text.str();
}

void first_call() {
  (*body_of_launch)(machine.team(*machine.lane).member);
  exit_thread();
}

/// The n-th stack of the program, with a page below that nothing may touch.
char* stack(std::size_t n) {
  static std::vector<char*> stacks;
  while (stacks.size() <= n) {
    void* const memory =
        mmap(nullptr, page_bytes + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page_bytes, PROT_NONE) != 0) throw std::runtime_error("no memory for stacks");
    stacks.push_back(static_cast<char*>(memory));
  }
  return stacks[n] + page_bytes;
}

void prepare(Lane& lane, char* stack_begin) {
  auto** top = reinterpret_cast<void**>(stack_begin + stack_bytes - 64);
  *--top     = nullptr;  // nobody to return to
  *--top     = reinterpret_cast<void*>(&first_call);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  lane.stack_pointer = top;
}

/// Contiguous, so that one comparison tells shared memory from everything else.
unsigned char* memory_of(int teams) {
  static std::size_t    size   = 0;
  static unsigned char* memory = nullptr;
  const auto            needed = static_cast<std::size_t>(teams) * largest_scratch;
  if (needed > size) {
    std::free(memory);
    memory = static_cast<unsigned char*>(std::aligned_alloc(1024, needed));
    size   = needed;
  }
  std::memset(memory, 0xff, needed);  // NaN
  return memory;
}

void start(int threads, int teams, int scratch_bytes) {
  machine.random.seed(machine.settings.seed);
  machine.teams.clear();
  machine.boxes.clear();
  machine.bulk_copies.clear();
  machine.thread_copies.clear();
  machine.sleeping.clear();
  machine.fruitless = 0;
  machine.memory    = memory_of(teams);
  failure.clear();
  if (threads % 32 != 0 || scratch_bytes > 227 * 1024) fail("a launch of ", threads, " threads, ", scratch_bytes, " bytes");
  std::size_t fibers = 0;
  for (int t = 0; t < teams; ++t) {
    auto team    = std::make_unique<Team>();
    team->member = {t, teams};
    team->memory = machine.memory + static_cast<std::size_t>(t) * largest_scratch;
    team->base   = 1024 * (1 + static_cast<std::uint32_t>(machine.draw(2)));
    team->bytes  = scratch_bytes;
    team->live   = threads;
    team->start  = machine.settings.late_start ? static_cast<long>(machine.draw(3) * machine.draw(30000)) : 0;
    for (int w = 0; w < threads / 32; ++w) {
      auto warp = std::make_unique<Warp>();
      if (machine.settings.schedule == Schedule::slow_warps) warp->weight = std::ldexp(1.0, -static_cast<int>(machine.draw(10)));
      if (w == machine.settings.optimistic_warp) warp->weight *= 0.125;  // what it has loaded is to be out of date
      for (int l = 0; l < 32; ++l) {
        Lane& lane = warp->lanes[l];
        lane.team  = t;
        lane.warp  = w;
        lane.lane  = l;
        prepare(lane, stack(fibers++));
      }
      team->warps.push_back(std::move(warp));
    }
    machine.teams.push_back(std::move(team));
  }
  start_clocks();
}

struct ReadyWarp {
  std::size_t team, warp;

  bool operator==(const ReadyWarp&) const = default;
};

ReadyWarp choose(const std::vector<ReadyWarp>& ready, const ReadyWarp& before) {
  switch (machine.settings.schedule) {
    case Schedule::first: return ready.front();
    case Schedule::last: return ready.back();
    case Schedule::longest:
      if (std::find(ready.begin(), ready.end(), before) != ready.end()) return before;
      break;
    case Schedule::slow_warps: {
      const auto weight = [](const ReadyWarp& at) { return machine.teams[at.team]->warps[at.warp]->weight; };
      double     sum    = 0;
      for (const ReadyWarp& at : ready) sum += weight(at);
      double rest = static_cast<double>(machine.draw(1 << 20)) / (1 << 20) * sum;
      for (const ReadyWarp& at : ready)
        if ((rest -= weight(at)) < 0) return at;
      return ready.back();
    }
    default: break;
  }
  return ready[machine.draw(ready.size())];
}

void run(Warp& warp) {
  const std::uint32_t mask  = warp.ready;
  const std::uint64_t first = machine.draw(32);
  for (std::uint64_t k = 0; k < 32; ++k) {
    Lane& lane = warp.lanes[(first + k) % 32];
    if ((mask >> lane.lane & 1) == 0 || !lane.ready) continue;
    machine.lane = &lane;
    tributary_emulator_switch(&scheduler_stack, lane.stack_pointer);
    machine.lane = nullptr;
    if (!failure.empty()) throw Failure(failure);
  }
}

void wake_sleeping() {
  for (Lane* const lane : machine.sleeping) wake(*lane);
  machine.sleeping.clear();
}

/// Where nothing else can go on: whether sleeping lanes can, which look again and again for an arrival or an atomic operation.
bool wake_for_news() {
  if (machine.sleeping.empty() || machine.fruitless > 3) return false;
  ++machine.fruitless;
  wake_sleeping();
  return true;
}

/// Products that nobody waits for yet.
void step_products() {
  if (machine.settings.products != Timing::random || machine.draw(4) != 0) return;
  Team&     team = *machine.teams[machine.draw(machine.teams.size())];
  const int warp = static_cast<int>(machine.draw(team.warps.size()));
  for (IssuedProduct& product : team.warps[static_cast<std::size_t>(warp)]->products)
    if (!product.done) {
      if (product.lanes == 32) execute(team, warp, product);
      break;
    }
}

void check_end() {
  if (!machine.boxes.empty()) fail("a team ended before its copies");
  if (!machine.bulk_copies.empty()) fail("a team ended before its bulk copies");
  if (!machine.thread_copies.empty()) fail("a team ended before its threads' copies");
  int registers = 0;
  for (const auto& team : machine.teams) {
    for (std::size_t w = 0; w < team->warps.size(); ++w) {
      const Warp &warp = *team->warps[w], &first = *team->warps[w / 4 * 4];
      if (!warp.products.empty()) fail("a team ended before its products");
      if (warp.registers != first.registers) fail("setmaxnreg differs in a warpgroup");
      if (team == machine.teams.front() && w % 4 == 0) registers += 128 * warp.registers;
    }
    for (const MemoryBarrier& barrier : team->barriers)
      if (barrier.bytes != 0) fail("bytes are still expected at the end");
  }
  if (registers > 65536) fail("setmaxnreg asks for ", registers, " registers");
}

}  // namespace

Settings Settings::of(std::uint64_t seed, int processors) {
  return {.seed       = seed,
          .copies     = static_cast<Timing>(seed % 3),
          .products   = static_cast<Timing>(seed / 3 % 3),
          .schedule   = static_cast<Schedule>(seed / 9 % 5),
          .processors = processors,
          .late_start = seed / 45 % 2 == 1,
          .watched    = {}};
}

void   set(const Settings& settings) { machine.settings = settings; }
Counts counts() { return machine.counts; }
int    processors() { return machine.settings.processors; }

void stop(const std::string& what) {
  std::ostringstream text;
  const Settings&    settings = machine.settings;
  text << what << " (seed " << settings.seed << ", copies " << static_cast<int>(settings.copies) << ", products "
       << static_cast<int>(settings.products) << ", schedule " << static_cast<int>(settings.schedule) << ")";
  if (machine.lane == nullptr) throw Failure(text.str() + picture());
  text << " by team " << machine.lane->team << " warp " << machine.lane->warp << " lane " << machine.lane->lane;
  failure = text.str() + picture();
  leave_fiber();  // for ever: an exception cannot leave a fiber, the scheduler throws it
  std::abort();
}

void block() {
  Lane& lane = *machine.lane;
  lane.ready = false;
  machine.warp(lane).ready &= ~(1u << lane.lane);
  leave_fiber();
}

void yield() { leave_fiber(); }

void wake(Lane& lane) {
  lane.ready     = true;
  lane.waits_for = nullptr;
  machine.warp(lane).ready |= 1u << lane.lane;
}

int thread_of_team() { return machine.lane->warp * 32 + machine.lane->lane; }

unsigned char* scratch(int bytes) {
  const Team& team = machine.team(*machine.lane);
  if (bytes != team.bytes) fail("scratch of ", bytes, " bytes, launched with ", team.bytes);
  return team.memory;
}

void exit_thread() {
  Lane& lane = *machine.lane;
  Warp& warp = machine.warp(lane);
  if (warp.arrived != 0) fail("exit while the warp is in a collective");
  lane.ended = true;
  --machine.team(lane).live;
  block();
  std::abort();
}

// Until the next release, or for some time.
void nanosleep() {
  ++machine.counts.sleeps;
  machine.sleeping.push_back(machine.lane);
  block();
}

void setmaxnreg(int registers) { machine.warp(*machine.lane).registers = registers; }

void launch(int threads, int teams, int scratch_bytes, const std::function<void(const Member&)>& body) {
  ++machine.counts.launches;
  body_of_launch = &body;
  start(threads, teams, scratch_bytes);
  std::vector<ReadyWarp> ready;
  ReadyWarp              before{~std::size_t{0}, 0};
  for (long tick = 0;; ++tick) {
    step_copies();
    step_products();
    if (!machine.sleeping.empty() && machine.draw(512) == 0) wake_sleeping();
    ready.clear();
    bool live = false, late = false;
    for (std::size_t t = 0; t < machine.teams.size(); ++t) {
      const Team& team = *machine.teams[t];
      if (team.live == 0) continue;
      live = true;
      late = late || tick < team.start;
      if (tick < team.start) continue;
      for (std::size_t w = 0; w < team.warps.size(); ++w)
        if (team.warps[w]->ready != 0) ready.push_back({t, w});
    }
    if (!live) break;
    if (ready.empty()) {
      if (deliver_any_box() || wake_for_news()) continue;
      if (!late) fail("deadlock");
      tick += 1000;
      continue;
    }
    before = choose(ready, before);
    run(*machine.teams[before.team]->warps[before.warp]);
  }
  check_end();
}

}  // namespace TributaryTest::Emulator
