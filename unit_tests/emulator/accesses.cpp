#include <cstring>

#include "machine.hpp"

// Ordinary loads and stores of shared memory, and atomic operations, before which other threads may come.  Kernels are compiled with
// -fsanitize=thread, but linked with the functions below in the sanitizer's stead.  Refused are accesses to what a copy is writing, stores
// to what a copy or a product may still read, and accesses to another team's memory or beyond the scratch; words that were written without
// a proxy fence are remembered, and if a test says so those that were read.

namespace TributaryTest::Emulator {

void require_no_box(const Team& team, const Range& range, const char* what) {
  for (const BoxCopy& box : machine.boxes)
    if (box.team == team.member.rank && box.to.meets(range)) fail(what, " touches +", range.begin - team.base, ", which a copy is writing");
}

void require_no_reader(const Team& team, const Range& range, const char* what) {
  for (std::size_t w = 0; w < team.warps.size(); ++w)
    for (const IssuedProduct& product : team.warps[w]->products)
      for (const Range& read : product.reads)
        if (read.meets(range)) fail(what, " writes +", range.begin - team.base, ", which a product of warp ", w, " may read");
  for (const BulkCopy& copy : machine.bulk_copies)
    if (copy.lane->team == team.member.rank && !copy.read && copy.from.meets(range))
      fail(what, " writes +", range.begin - team.base, ", which a bulk copy reads");
}

void require_fenced(const Team& team, const Range& range, const char* what) {
  for (std::uint32_t word = (range.begin - team.base) / 4; word < (range.end - team.base) / 4; ++word)
    if (team.writer[word] != 0)
      fail(what, " touches +", word * 4, ", which thread ", team.writer[word] - 1, " wrote without a proxy fence");
}

void require_loads_fenced(const Team& team, const Range& range) {
  for (std::uint32_t word = (range.begin - team.base) / 4; word < (range.end - team.base) / 4; ++word)
    if (team.reader[word] != 0) fail("a copy to +", word * 4, ", which thread ", team.reader[word] - 1, " read without a proxy fence");
}

void fence_proxy_async() {
  ++machine.counts.proxy_fences;
  Lane&      lane  = *machine.lane;
  const auto fence = [](std::vector<int>& words, std::vector<std::uint16_t>& threads) {
    for (const int word : words)
      if (std::uint16_t& of_word = threads[static_cast<std::size_t>(word)]; of_word == thread_of_team() + 1) of_word = 0;
    words.clear();
  };
  fence(lane.unfenced, machine.team(lane).writer);
  fence(lane.unfenced_loads, machine.team(lane).reader);
}

namespace {

void access(const void* pointer, long bytes, Access kind) {
  if (machine.lane == nullptr) return;
  const bool writes = kind != Access::load;
  check_race(pointer, bytes, kind);
  const auto in_memory = static_cast<const unsigned char*>(pointer) - machine.memory;
  if (in_memory < 0 || in_memory >= static_cast<long>(machine.teams.size()) * largest_scratch) return;
  Lane&      lane   = *machine.lane;
  Team&      team   = machine.team(lane);
  const long offset = static_cast<const unsigned char*>(pointer) - team.memory;
  if (offset < 0 || offset >= largest_scratch) fail("an access to another team's shared memory");
  if (offset + bytes > team.bytes) fail("an access beyond the scratch");
  const Range range{team.base + static_cast<std::uint32_t>(offset), team.base + static_cast<std::uint32_t>(offset + bytes)};
  require_no_box(team, range, writes ? "a store" : "a load");
  if (writes) require_no_reader(team, range, "a store");
  const auto remember = [&](std::vector<std::uint16_t>& threads, std::vector<int>& words) {
    const auto thread = static_cast<std::uint16_t>(thread_of_team() + 1);
    for (long word = offset / 4; word < (offset + bytes + 3) / 4; ++word) {
      std::uint16_t& of_word = threads[static_cast<std::size_t>(word)];
      if (of_word == thread) continue;
      of_word = thread;
      words.push_back(static_cast<int>(word));
    }
  };
  if (writes)
    remember(team.writer, lane.unfenced);
  else if (machine.settings.loads_need_fences)
    remember(team.reader, lane.unfenced_loads);
}

/// A volatile load: others may change the word at the same time.
void volatile_load(const void* pointer, long bytes) {
  if (machine.lane == nullptr) return;
  if (machine.draw(8) == 0) yield();
  access(pointer, bytes, Access::atomic);
  order_atomic(pointer, false);
}

template <class Number>
std::uint64_t operate(Atomic operation, Number& at, Number value, Number expected) {
  const Omission::Of omitted = machine.settings.omission.of;
  const Number       before  = at;
  switch (operation) {
    case Atomic::add: at += value; break;
    case Atomic::bit_or:
      if (omitted != Omission::Of::atomic_or) at |= value;
      break;
    case Atomic::exchange:
      change_atomically(&at);
      if (omitted != Omission::Of::atomic_exchange) at = value;
      break;
    case Atomic::compare_and_swap:
      if (at == expected) change_atomically(&at);
      if (at == expected || omitted == Omission::Of::comparison) at = value;
      break;
  }
  return before;
}

}  // namespace

std::uint64_t atomic(Atomic operation, void* at, int bytes, std::uint64_t value, std::uint64_t expected) {
  if (machine.draw(8) == 0) yield();
  access(at, bytes, Access::atomic);
  order_atomic(at, true);
  machine.fruitless = 0;
  if (bytes == 8) return operate(operation, *static_cast<std::uint64_t*>(at), value, expected);
  return operate(operation, *static_cast<std::uint32_t*>(at), static_cast<std::uint32_t>(value), static_cast<std::uint32_t>(expected));
}

void stmatrix(std::uint32_t row, std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  if (row % 16 != 0) fail("a row of a matrix that is not aligned");
  const std::uint32_t words[4] = {a, b, c, d};
  const int           lane     = thread_of_team() % 32;
  for (int m = 0; m < 4; ++m) {
    const auto           begin = static_cast<std::uint32_t>(shuffle(row, 8 * m + lane / 4));
    unsigned char* const at    = bytes_at(machine.team(*machine.lane), begin + static_cast<std::uint32_t>(lane % 4 * 4), 4);
    access(at, 4, Access::store);
    std::memcpy(at, &words[m], 4);
  }
}

}  // namespace TributaryTest::Emulator

// What the compiler calls; names are the sanitizer's.
extern "C" {
// NOLINTBEGIN
#define TRIBUTARY_ACCESS(name, bytes, kind) \
  void __tsan_##name##bytes(void* at) { TributaryTest::Emulator::access(at, bytes, TributaryTest::Emulator::Access::kind); }
#define TRIBUTARY_ACCESSES(bytes)                 \
  TRIBUTARY_ACCESS(read, bytes, load)             \
  TRIBUTARY_ACCESS(write, bytes, store)           \
  TRIBUTARY_ACCESS(unaligned_read, bytes, load)   \
  TRIBUTARY_ACCESS(unaligned_write, bytes, store) \
  TRIBUTARY_ACCESS(volatile_write, bytes, atomic) \
  void __tsan_volatile_read##bytes(void* at) { TributaryTest::Emulator::volatile_load(at, bytes); }
TRIBUTARY_ACCESSES(1)
TRIBUTARY_ACCESSES(2)
TRIBUTARY_ACCESSES(4)
TRIBUTARY_ACCESSES(8)
TRIBUTARY_ACCESSES(16)
void __tsan_read_range(void* at, unsigned long bytes) {
  TributaryTest::Emulator::access(at, static_cast<long>(bytes), TributaryTest::Emulator::Access::load);
}
void __tsan_write_range(void* at, unsigned long bytes) {
  TributaryTest::Emulator::access(at, static_cast<long>(bytes), TributaryTest::Emulator::Access::store);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
// NOLINTEND
}
