#include <algorithm>
#include <cstring>

#include "machine.hpp"
#include "sm90/tensor_map.hpp"

// The copy engine.  A box's destination holds NaN from the request to the delivery; a bulk copy reads its source at some time and
// writes it piece by piece.  Refused are copies that meet another one or what a product reads, sources that no proxy fence covers,
// and more bytes than the barrier expects.

namespace TributaryTest::Emulator {

std::uint32_t shared_address(const void* pointer) {
  const Team& team   = machine.team(*machine.lane);
  const auto  offset = static_cast<const unsigned char*>(pointer) - team.memory;
  if (offset < 0 || offset >= team.bytes) fail("a shared address outside the team's scratch");
  return team.base + static_cast<std::uint32_t>(offset);
}

unsigned char* bytes_at(Team& team, std::uint32_t address, std::uint32_t count) {
  if (address < team.base || address + count > team.base + static_cast<std::uint32_t>(team.bytes))
    fail("shared address ", address, " outside the team's scratch");
  return team.memory + (address - team.base);
}

namespace {

void copy_box(void* to, const TensorMap* map, std::uint32_t rank, std::uint64_t* barrier, int x, int y, int z, int w) {
  const Lane& lane = *machine.lane;
  Team&       team = machine.team(lane);
  if (map->mark != tensor_map_mark || reinterpret_cast<std::uintptr_t>(map) % 64 != 0 || map->rank != rank) fail("no tensor map");
  const std::uint32_t bytes   = map->row_bytes() * map->box[1] * map->box[2] * map->box[3];
  const std::uint32_t address = shared_address(to);
  if (address % (rank == 1 ? 16 : 8 * map->row_bytes()) != 0) fail("a copy to an address that is not aligned");  // to 8 swizzled rows
  BoxCopy    copy{lane.team, *map, &barrier_at(team, barrier), {x, y, z, w}, {address, address + bytes}};
  const auto heads = map->extents[1], batches = map->extents[3];
  // The engine would fill with zeros, but the kernels have no reason to ask for boxes of other heads or batch entries.
  if (x < 0 || y < 0 || z < 0 || w < 0 || static_cast<std::uint64_t>(y) >= heads || static_cast<std::uint64_t>(w) >= batches)
    fail("a box outside the tensor: ", x, " ", y, " ", z, " ", w);
  require_no_box(team, copy.to, "a copy");
  require_no_reader(team, copy.to, "a copy");
  require_fenced(team, copy.to, "a copy");
  require_loads_fenced(team, copy.to);
  std::memset(bytes_at(team, address, bytes), 0xff, bytes);
  machine.boxes.push_back(copy);
  ++machine.counts.boxes;
}

void deliver(std::size_t index) {
  const BoxCopy copy = machine.boxes[index];
  machine.boxes.erase(machine.boxes.begin() + static_cast<std::ptrdiff_t>(index));
  Team&            team = *machine.teams[static_cast<std::size_t>(copy.team)];
  const TensorMap& map  = copy.map;
  // A row's bytes that exist; its other ones come as zeros.
  const std::uint64_t first = static_cast<std::uint64_t>(copy.at[0]) * map.element_bytes, length = map.extents[0] * map.element_bytes;
  for (std::uint32_t row = 0; row < map.box[1] * map.box[2]; ++row) {
    const std::uint64_t y    = static_cast<std::uint64_t>(copy.at[1]) + row % map.box[1];
    const std::uint64_t z    = static_cast<std::uint64_t>(copy.at[2]) + row / map.box[1];
    const char* const   from = static_cast<const char*>(map.base) + y * map.strides[0] + z * map.strides[1] +
                             static_cast<std::uint64_t>(copy.at[3]) * map.strides[2];
    for (std::uint32_t byte = 0; byte < map.row_bytes(); byte += 16) {
      char                piece[16] = {};
      const std::uint64_t x         = first + byte;
      if (x < length && y < map.extents[1] && z < map.extents[2]) std::memcpy(piece, from + x, std::min<std::uint64_t>(16, length - x));
      const std::uint32_t to = copy.to.begin + row * map.row_bytes() + byte;
      std::memcpy(bytes_at(team, map.rank == 1 ? to : swizzled(to, map.row_bytes()), 16), piece, 16);
    }
  }
  copy.barrier->bytes -= static_cast<long>(copy.to.end - copy.to.begin);
  if (copy.barrier->bytes < 0) fail("a copy brings more bytes than its barrier expects");
  complete(*copy.barrier);
}

void read_source(BulkCopy& copy) {
  if (copy.read) return;
  copy.read = true;
  copy.values.assign(copy.source, copy.source + copy.count);
}

/// Reads, or writes at most so many elements; whether the copy is over.
bool advance(BulkCopy& copy, int most) {
  if (!copy.read) {
    read_source(copy);
    return false;
  }
  for (; most > 0 && copy.written < copy.count; --most, ++copy.written) {
    float&      to   = copy.to[copy.written];
    const float from = copy.values[static_cast<std::size_t>(copy.written)];
    to               = copy.adds ? to + from : from;
  }
  return copy.written == copy.count;
}

/// A thread's oldest copy or arrival, the thread that of entry `index`.
void step_thread(std::size_t index) {
  const Lane* const lane = machine.thread_copies[index].lane;
  const auto        oldest =
      std::find_if(machine.thread_copies.begin(), machine.thread_copies.end(), [&](const ThreadCopy& c) { return c.lane == lane; });
  const ThreadCopy copy = *oldest;
  machine.thread_copies.erase(oldest);
  if (copy.barrier != nullptr) {
    if (copy.barrier->pending <= 0) fail("mbarrier: more arrivals than it counts");
    --copy.barrier->pending;
    machine.fruitless = 0;
    complete(*copy.barrier);
  } else if (copy.from == nullptr) {
    std::memset(copy.to, 0, static_cast<std::size_t>(copy.bytes));
  } else {
    std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
  }
}

}  // namespace

void cp_async(std::uint32_t to, const void* from, int bytes, bool real) {
  Lane& lane = *machine.lane;
  Team& team = machine.team(lane);
  if (to % static_cast<std::uint32_t>(bytes) != 0 ||
      (real && reinterpret_cast<std::uintptr_t>(from) % static_cast<std::uintptr_t>(bytes) != 0))
    fail("a copy that is not aligned");
  const Range range{to, to + static_cast<std::uint32_t>(bytes)};
  require_no_box(team, range, "a copy");
  require_no_reader(team, range, "a copy");
  unsigned char* const at = bytes_at(team, to, static_cast<std::uint32_t>(bytes));
  std::memset(at, 0xff, static_cast<std::size_t>(bytes));
  machine.thread_copies.push_back({&lane, at, real ? from : nullptr, bytes, nullptr});
}

void cp_async_mbarrier_arrive(std::uint64_t* barrier) {
  Lane& lane = *machine.lane;
  machine.thread_copies.push_back({&lane, nullptr, nullptr, 0, &barrier_at(machine.team(lane), barrier)});
}

void cp_async_wait_all() {
  for (std::size_t i = 0; i < machine.thread_copies.size();)
    if (machine.thread_copies[i].lane == machine.lane)
      step_thread(i);
    else
      ++i;
}

void step_copies() {
  const Timing timing = machine.settings.copies;
  if (timing == Timing::late) return;
  for (int i = 0; i < 64 && !machine.thread_copies.empty(); ++i) step_thread(machine.draw(machine.thread_copies.size()));
  if (!machine.boxes.empty()) {
    if (timing == Timing::early)
      deliver(0);
    else if (machine.draw(6) == 0)
      deliver(machine.draw(machine.boxes.size()));
  }
  if (!machine.bulk_copies.empty() && (timing == Timing::early || machine.draw(4) == 0)) {
    const auto at = machine.bulk_copies.begin() + static_cast<std::ptrdiff_t>(machine.draw(machine.bulk_copies.size()));
    if (advance(*at, 1 + static_cast<int>(machine.draw(2048)))) machine.bulk_copies.erase(at);
  }
}

bool deliver_any_box() {
  if (!machine.thread_copies.empty()) {
    step_thread(machine.draw(machine.thread_copies.size()));
    return true;
  }
  if (machine.boxes.empty()) return false;
  const bool newest = machine.settings.copies == Timing::late && machine.draw(2) == 0;
  deliver(newest ? machine.boxes.size() - 1 : machine.draw(machine.boxes.size()));
  return true;
}

void cp_async_bulk_tensor(void* to, const TensorMap* map, std::uint64_t* barrier, int x, int y, int z) {
  copy_box(to, map, 3, barrier, x, 0, y, z);
}
void cp_async_bulk_tensor(void* to, const TensorMap* map, std::uint64_t* barrier, int x, int y, int z, int w) {
  copy_box(to, map, 4, barrier, x, y, z, w);
}

/// As it lies: a box of whole rows that are not swizzled, which a map of one dimension stands for.
void cp_async_bulk(void* to, const void* from, int bytes, std::uint64_t* barrier) {
  constexpr int row = 16;
  if (bytes <= 0 || bytes % row != 0 || reinterpret_cast<std::uintptr_t>(from) % 16 != 0) fail("a bulk copy that is not aligned");
  if (machine.lane->acquired) fail("a bulk copy after an acquire without fence.proxy.async.global between");
  const auto rows = static_cast<std::uint32_t>(bytes / row);
  TensorMap  map{};
  map.base                       = from;
  map.mark                       = tensor_map_mark;
  map.rank                       = 1;
  map.element_bytes              = 2;
  const std::uint64_t extents[4] = {row / 2, 1, rows, 1};
  const std::uint32_t box[4]     = {row / 2, 1, rows, 1};
  std::copy(extents, extents + 4, map.extents);
  std::copy(box, box + 4, map.box);
  std::fill(map.strides, map.strides + 3, row);
  copy_box(to, &map, 1, barrier, 0, 0, 0, 0);
}

void cp_async_bulk(float* to, const float* from, int bytes, bool adds) {
  Lane&      lane    = *machine.lane;
  Team&      team    = machine.team(lane);
  const auto address = shared_address(from);
  if (bytes <= 0 || bytes % 16 != 0 || address % 16 != 0 || reinterpret_cast<std::uintptr_t>(to) % 16 != 0)
    fail("a bulk copy that is not aligned");
  const Range range{address, address + static_cast<std::uint32_t>(bytes)};
  bytes_at(team, address, static_cast<std::uint32_t>(bytes));
  require_fenced(team, range, "a bulk copy");
  if (lane.acquired) fail("a bulk copy after an acquire without fence.proxy.async.global between");
  for (const BulkCopy& other : machine.bulk_copies)
    if (other.writes_into(to, bytes / 4) && !(adds && other.adds)) fail("two bulk copies to the same place at the same time");
  machine.bulk_copies.push_back({&lane, range, from, to, bytes / 4, adds, false, false, 0, {}});
  lane.copied = true;
  ++machine.counts.bulk_copies;
}

void cp_async_bulk_commit_group() {
  for (BulkCopy& copy : machine.bulk_copies)
    if (copy.lane == machine.lane) copy.committed = true;
}

void cp_async_bulk_wait(bool read_only) {
  const Lane* const lane = machine.lane;
  for (const BulkCopy& copy : machine.bulk_copies)
    if (copy.lane == lane && !copy.committed) fail("a wait for a bulk copy that is not committed");
  yield();
  std::erase_if(machine.bulk_copies, [&](BulkCopy& copy) {
    if (copy.lane != lane) return false;
    read_source(copy);
    return !read_only && advance(copy, copy.count);
  });
}

void fence_proxy_async_global() { machine.lane->acquired = machine.lane->copied = false; }

std::int32_t ld_acquire(const std::int32_t* from) {
  if (machine.draw(2) == 0) yield();
  machine.lane->acquired = true;
  return *from;
}

void st_release(std::int32_t* to, std::int32_t value) {
  if (machine.draw(2) == 0) yield();
  for (const BulkCopy& copy : machine.bulk_copies)
    if (copy.lane == machine.lane) fail("a release before the thread's bulk copies are complete");
  if (machine.lane->copied) fail("a release after bulk copies without fence.proxy.async.global between");
  *to = value;
  for (Lane* const lane : machine.sleeping) wake(*lane);
  machine.sleeping.clear();
  machine.fruitless = 0;
}

}  // namespace TributaryTest::Emulator

// What the library asks of the driver.
namespace Tributary::Impl {

template <>
CUtensorMap SM90::tensor_map<4>(ElementType type, const void* base, const TensorShape<4>& shape) {
  using TributaryTest::Emulator::fail;
  const bool  empty = std::any_of(shape.extents.begin(), shape.extents.end(), [](std::int64_t extent) { return extent == 0; });
  CUtensorMap map{};
  map.base          = base;
  map.mark          = TributaryTest::Emulator::tensor_map_mark;
  map.rank          = 4;
  map.element_bytes = type == ElementType::float8_e4m3 ? 1 : 2;
  for (std::size_t d = 0; d < 4; ++d) {
    map.extents[d] = empty && d > 0 ? 1 : static_cast<std::uint64_t>(shape.extents[d]);
    map.box[d]     = static_cast<std::uint32_t>(shape.box[d]);
    if (map.extents[d] == 0 || map.box[d] < 1 || map.box[d] > 256) fail("tensor map: extent ", map.extents[d], ", box ", map.box[d]);
  }
  for (std::size_t d = 0; d < 3; ++d) {
    map.strides[d] = map.extents[d + 1] == 1 ? 16 : static_cast<std::uint64_t>(shape.strides[d]) * map.element_bytes;
    if (map.strides[d] == 0 || map.strides[d] % 16 != 0 || map.strides[d] >= std::uint64_t{1} << 40)
      fail("tensor map: the driver would refuse a stride of ", map.strides[d], " bytes");
  }
  if (reinterpret_cast<std::uintptr_t>(base) % 16 != 0) fail("tensor map: the base is no multiple of 16 bytes");
  if (map.row_bytes() != 128 && map.row_bytes() != 64) fail("tensor map: rows of ", map.row_bytes(), " bytes are not emulated");
  return map;
}

template <>
CUtensorMap SM90::tensor_map<3>(ElementType type, const void* base, const TensorShape<3>& shape) {
  CUtensorMap map = tensor_map<4>(
      type, base,
      {.extents = {shape.extents[0], shape.extents[1] == 0 || shape.extents[2] == 0 ? 0 : 1, shape.extents[1], shape.extents[2]},
       .strides = {0, shape.strides[0], shape.strides[1]},
       .box     = {shape.box[0], 1, shape.box[1], shape.box[2]}});
  map.rank = 3;
  return map;
}

}  // namespace Tributary::Impl
