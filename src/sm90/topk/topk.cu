#include "sm90/topk/topk.hpp"

#include <algorithm>
#include <cmath>

#include "common/log.hpp"
#include "common/workers.hpp"
#include "sm90/launch.cuh"
#include "sm90/topk/output.cuh"
#include "sm90/topk/ring.cuh"
#include "sm90/topk/select_short_rows.cuh"
#include "sm90/topk/values.cuh"

// topk: each row is read once.  A team streams a row's values past a bound and collects what passes in a pool in shared memory.  Long rows
// come by the copy engine, and their first chunk says which bound is likely to do; where too few reach it, or more than there is room for,
// the row comes again.  Of many short rows a warp has one in registers, or four.  Few long rows are cut into parts: a team a part leaves
// the best of it and a bound of the rest; a second launch joins the parts of each row, and reads those again whose bound says that they may
// hide one of the k best.

namespace Tributary::Impl::SM90 {
namespace {

constexpr int threads      = 256;   // a team; four of them an SM: one's cuts and sorting hide behind the others' reading
constexpr int teams_per_sm = 4;     // 64 registers a thread
constexpr int bins         = 1024;  // for up to 2048 results
/// Blocks of 16 bytes that a thread has under way: 8 or 16 KiB a team.  Sixteen values, or more registers than there are.
template <class Value>
constexpr int loads         = sizeof(Value);
constexpr int merge_threads = 1024;

// Long rows: some 64 KiB of them on their way to a team, so that one reads as fast as an SM can while the other one sorts.
constexpr int long_row_threads      = 256;  // and a warp that brings the rows
constexpr int long_row_teams_per_sm = 2;
constexpr int least_long_row        = 4097;  // values: two chunks, of which the first one is a sample
template <class Value>
constexpr int long_row_loads = sizeof(Value);

// Short rows, of up to 2048 values.
constexpr int largest_short_keep = 512;
constexpr int least_warp_rows    = 512;  // fewer rows: a team each is done sooner

// Rows in parts.
constexpr int teams_wanted = 528;   // four an SM
constexpr int least_part   = 2048;  // values: two loads a thread
// Microseconds on an H100: 8 and 18 for each 65536 of a row's values where a team has it, 15 and 6 for each 2^20 of all values in parts.
// The latter is less where columns * (most_cut_rows - rows) is at least this, rounded towards a team a row.
constexpr int most_cut_rows = 50;
constexpr int least_cut     = 1500000;
constexpr int part_capacity = 5632;  // of a part's pool: four teams an SM
constexpr int most_parts    = 256;

/// What the teams that read the parts of rows leave.
struct PartLists {
  Entry*   entries;  // [rows, parts, capacity], no_entry where a part has fewer
  Entry*   bounds;   // [rows, parts]: a part's entries from it up are in its list, and no others
  unsigned parts;    // of each row
  int      keep, capacity;
};

/// A row a team.
template <class Value>
struct SelectRows {
  using Pool = Candidates<threads, bins>;

  ValueRows  rows;
  PoolSizes  sizes;
  TopkOutput output;

  int scratch_bytes() const { return Pool::scratch_bytes(sizes.keep, sizes.capacity); }

  __device__ void operator()(const Member& team) const {
    const auto place = rows.place(static_cast<unsigned>(team.league_rank()));
    Pool       pool(aligned_scratch(team, Pool::scratch_bytes(sizes.keep, sizes.capacity)), sizes.keep, sizes.most, sizes.capacity);
    stream(RowReader<Value, threads, loads<Value>>(rows, place, {0, 1}), pool);
    write_row(pool, sizes.keep, output, place.batch, place.row);
    exit_thread();
  }
};

/// Long rows, every so-manyth a team, whose last warp brings them: the beginning of the next one while the others sort.
template <class Value>
struct SelectLongRows {
  using Pool                  = Candidates<long_row_threads, bins>;
  using Row                   = ChunkedRow<Value, long_row_threads, long_row_loads<Value>>;
  static constexpr int warps  = long_row_threads / 32 + 1;
  static constexpr int budget = (228 * 1024 / long_row_teams_per_sm - 1024 - scratch_alignment - 16 - 8 * (warps + 2)) / 16 * 16;

  ValueRows  rows;
  PoolSizes  sizes;
  TopkOutput output;
  unsigned   all_rows;
  int        slots;

  static int slots_beside(const PoolSizes& sizes) {
    const int rest = budget - static_cast<int>(sizeof(ChunkRing)) - Pool::scratch_bytes(sizes.keep, sizes.capacity);
    return std::clamp(rest / Row::bytes, 2, ChunkRing::most_slots);
  }

  KOKKOS_INLINE_FUNCTION int scratch_bytes() const {
    return slots * Row::bytes + static_cast<int>(sizeof(ChunkRing)) + Pool::scratch_bytes(sizes.keep, sizes.capacity);
  }

  __device__ void operator()(const Member& team) const {
    unsigned char* const chunks = aligned_scratch(team, scratch_bytes());
    auto&                ring   = *reinterpret_cast<ChunkRing*>(chunks + slots * Row::bytes);
    if (thread_of_team() == 0) ring.initialise(slots, warps - 1);
    ptx::bar_sync(all_barrier, 32 * warps);
    ChunkSlot slot{slots};
    for (auto number = static_cast<unsigned>(team.league_rank()); number < all_rows; number += static_cast<unsigned>(team.league_size())) {
      const auto place = rows.place(number);
      const Row  row(rows, place);
      if (threadIdx.y < warps - 1)
        select(row, place, chunks, ring, slot);
      else if (row.chunks() > 0)
        bring_row(row, chunks, ring, slot);
    }
    exit_thread();
  }

 private:
  static constexpr int all_barrier = 1, end_barrier = 2;

  __device__ void bring_row(const Row& row, unsigned char* chunks, ChunkRing& ring, ChunkSlot& slot) const {
    const int lane = static_cast<int>(threadIdx.x);
    do {
      for (unsigned chunk = 0; chunk < row.chunks(); ++chunk, slot.next()) {
        ptx::mbarrier_wait(&ring.empty[slot.number], slot.round ^ 1);
        __syncwarp();  // a lane that came late would find the next round begun
        bring(row, chunk, chunks, ring, slot.number, lane);
      }
      ptx::bar_sync(end_barrier, 32 * warps);
    } while (ring.again);
  }

  __device__ void select(const Row& row, const ValueRows::Place& place, unsigned char* chunks, ChunkRing& ring, ChunkSlot& slot) const {
    Pool pool(reinterpret_cast<unsigned char*>(&ring + 1), sizes.keep, sizes.most, sizes.capacity);
    // Of a row without values nothing comes, and the other warp, which nobody waits for then, does not look at `again`.
    for (int wanted = sample_of(row.chunks()), pass = 0; row.chunks() > 0; wanted = 0, ++pass) {
      stream(row, pool, chunks, ring, slot, wanted);
      const bool too_few = pass == 0 && pool.bound() != 0 && pool.count() < sizes.keep;  // the sample's bound was too high
      const bool again   = too_few || pool.lost();
      Pool::Team::sync();  // all have seen it
      if (Pool::Team::rank() == 0) ring.again = again;
      __syncwarp();
      ptx::bar_arrive(end_barrier, 32 * warps);
      if (!again) break;
      if (too_few) pool.set_bound(0);
      pool.restart();
    }
    write_row(pool, sizes.keep, output, place.batch, place.row, [&](Entry entry) { return row.entries().usual(entry); });
    Pool::Team::sync();  // the pool is no longer read
  }

  /// How many of the best of a chunk are likely to let the k best of the row pass, and not many more: its share of them and five standard
  /// deviations.  0 where there is only one chunk.
  __device__ int sample_of(unsigned chunks) const {
    if (chunks <= 1) return 0;
    const float share = static_cast<float>(sizes.keep) / static_cast<float>(max(chunks, 1u));
    return static_cast<int>(share + 5.0f * sqrtf(share)) + 8;
  }
};

/// A part of a row a team; leaves at least the lists.keep best of it, if it has so many, in no order.
template <class Value>
struct SelectParts {
  using Pool = Candidates<threads, bins>;

  ValueRows rows;
  PoolSizes sizes;
  PartLists lists;

  int scratch_bytes() const { return Pool::scratch_bytes(0, sizes.capacity); }

  __device__ void operator()(const Member& team) const {
    const auto list = static_cast<unsigned>(team.league_rank());
    Pool       pool(aligned_scratch(team, Pool::scratch_bytes(0, sizes.capacity)), lists.keep, sizes.most, sizes.capacity);
    stream(RowReader<Value, threads, loads<Value>>(rows, rows.place(list / lists.parts), {list % lists.parts, lists.parts}), pool);
    if (pool.count() > lists.capacity) pool.cut(lists.keep, lists.capacity);
    for (int i = Pool::Team::rank(); i < lists.capacity; i += threads) {
      const Entry entry = i < pool.count() ? pool.entries()[i] : no_entry;
      // The pool may hold some below its bound, of equal scores; where the part is read again they would come twice.
      lists.entries[static_cast<std::size_t>(list) * lists.capacity + i] = entry >= pool.bound() ? entry : no_entry;
    }
    if (Pool::Team::rank() == 0) lists.bounds[list] = pool.bound();
    exit_thread();
  }
};

/// Joins the lists of a row's parts, a row a team.
template <class Value>
struct JoinParts {
  using Pool = Candidates<merge_threads, bins>;
  using Team = typename Pool::Team;

  ValueRows  rows;
  PoolSizes  sizes;
  TopkOutput output;
  PartLists  lists;

  int scratch_bytes() const { return Pool::scratch_bytes(sizes.keep, sizes.capacity); }

  __device__ void operator()(const Member& team) const {
    const auto row   = static_cast<unsigned>(team.league_rank());
    const auto place = rows.place(row);
    Pool       pool(aligned_scratch(team, Pool::scratch_bytes(sizes.keep, sizes.capacity)), sizes.keep, sizes.most, sizes.capacity);
    collect_lists(pool, row);
    typename Pool::Place best{};
    const auto           locate = [&] {
      const int wanted = pool.count() < sizes.keep ? pool.count() : sizes.keep;
      if (wanted > 0) best = pool.find(wanted);
      return wanted;
    };
    int wanted = locate();
    // What a part did not leave is below its bound.  No matter if that is below all that is left now.
    const Entry least = wanted < sizes.keep ? Entry{0} : best.bins.bottom(best.bin);
    if (read_hidden(pool, row, place, least)) wanted = locate();
    write_row(pool, best, wanted, output, place.batch, place.row);
    exit_thread();
  }

 private:
  __device__ void collect_lists(Pool& pool, unsigned row) const {
    constexpr int      each    = 4;
    const Entry* const entries = lists.entries + static_cast<std::size_t>(row) * lists.parts * lists.capacity;
    const int          total   = static_cast<int>(lists.parts) * lists.capacity;
    for (int first = 0; first < total; first += each * merge_threads) {
      Entry    own[each];
      unsigned mask = 0;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int at = first + i * merge_threads + Team::rank();
        own[i]       = at < total ? entries[at] : no_entry;
        mask |= (own[i] != no_entry ? 1u : 0u) << i;
      }
      const auto entry = [&](int i) { return own[i]; };
      do mask = pool.template within<each>(mask, ~Entry{0}, entry);
      while (!pool.template offer<each>(mask, entry));
    }
  }

  /// Reads those parts again that may hide entries from `least` up; false if there are none.
  __device__ bool read_hidden(Pool& pool, unsigned row, const ValueRows::Place& place, Entry least) const {
    const Entry* const bounds = lists.bounds + static_cast<std::size_t>(row) * lists.parts;
    bool               hidden = false;
    for (unsigned part = Team::rank(); part < lists.parts; part += merge_threads) hidden |= bounds[part] > least;
    if (!Team::any(hidden)) return false;
    pool.set_bound(least);
    for (unsigned part = 0; part < lists.parts; ++part)
      if (const Entry bound = bounds[part]; bound > least)
        stream<true>(RowReader<Value, merge_threads, 1>(rows, place, {part, lists.parts}), pool, bound - 1);
    return true;
  }
};

/// How a call is cut.
struct Plan {
  std::int64_t rows;  // of all batch entries
  int          keep, parts;
  PartLists    lists;
};

std::int64_t rows_of(const TopkArguments& arguments) { return arguments.values.extents[0] * arguments.values.extents[1]; }
std::int64_t keep_of(const TopkArguments& arguments) {
  return std::max<std::int64_t>(1, std::min(arguments.indices.extents[2], arguments.values.extents[2]));
}

int parts_of(std::int64_t rows, std::int64_t columns, std::int64_t wanted) {
  if (rows == 0) return 1;
  const std::int64_t most = std::min<std::int64_t>(most_parts, 0x7fffffff / rows);
  if (wanted > 0) return static_cast<int>(std::max<std::int64_t>(1, std::min(wanted, most)));
  if (columns * (most_cut_rows - rows) < least_cut) return 1;
  std::int64_t parts = std::min(teams_wanted / rows, columns / least_part);
  if (columns > parts * part_capacity) parts = teams_wanted / 2 / rows;  // each is cut several times: fewer are cut less often
  return static_cast<int>(std::clamp<std::int64_t>(parts, 1, most));
}

Plan plan_call(const TopkArguments& arguments, const TopkOptions& options, WorkspaceLayout& layout) {
  Plan plan{.rows = rows_of(arguments), .keep = static_cast<int>(keep_of(arguments)), .parts = 1, .lists = {}};
  plan.parts = parts_of(plan.rows, arguments.values.extents[2], options.key_splits);
  if (plan.parts == 1) return plan;
  // A part's share of the best, six standard deviations more than the mean: then a row in random order is never read again.
  const double share = static_cast<double>(plan.keep) / plan.parts;
  const int    keep  = std::min(plan.keep, static_cast<int>(std::ceil(share + 6 * std::sqrt(share) + 8)));
  plan.lists         = {.entries  = nullptr,
                        .bounds   = nullptr,
                        .parts    = static_cast<unsigned>(plan.parts),
                        .keep     = keep,
                        .capacity = (keep + keep / 2 + 31) / 32 * 32};
  plan.lists.entries = layout.take<Entry>(plan.rows * plan.parts * plan.lists.capacity);
  plan.lists.bounds  = layout.take<Entry>(plan.rows * plan.parts);
  return plan;
}

ValueRows value_rows(const TopkArguments& arguments) {
  return {.values        = arguments.values.data,
          .strides       = {arguments.values.strides[0], arguments.values.strides[1]},
          .range         = arguments.has_range ? arguments.range.data : nullptr,
          .range_strides = {arguments.range.strides[0], arguments.range.strides[1]},
          .rows          = static_cast<unsigned>(arguments.values.extents[1]),
          .columns       = static_cast<int>(arguments.values.extents[2])};
}

template <class Value, int Each>
void launch_short_rows(const Kokkos::Cuda& exec, const ValueRows& rows, const Plan& plan, const TopkOutput& output) {
  int room = 32;
  while (room < plan.keep || (room < 64 && room < rows.columns)) room *= 2;
  const SelectShortRows<Value, Each> functor{rows, output, static_cast<unsigned>(plan.rows), plan.keep, room};
  constexpr int                      teams = Each < 32 ? 8 : (Each == 32 ? 5 : 4);  // an SM
  launch_teams<32 * warps_of_rows, teams, 0>("Tributary::topk::hopper_short_rows", exec,
                                             static_cast<int>((plan.rows + warps_of_rows - 1) / warps_of_rows), functor.scratch_bytes(),
                                             functor);
}

template <class Value>
void launch_rows(const Kokkos::Cuda& exec, const ValueRows& rows, const Plan& plan, const TopkOutput& output) {
  constexpr int block = RowBlocks<Value>::width;
  if (plan.rows >= least_warp_rows && plan.keep <= largest_short_keep) {
    if (rows.fit<Value>(VeryShortRow<Value>::longest)) {
      using Functor = SelectVeryShortRows<Value>;
      const Functor functor{rows, output, static_cast<unsigned>(plan.rows), plan.keep};
      return launch_teams<32 * warps_of_very_short_rows, 4, 0>(
          "Tributary::topk::hopper_very_short_rows", exec,
          static_cast<int>((plan.rows + Functor::rows_of_team - 1) / Functor::rows_of_team), Functor::scratch_bytes, functor);
    }
    if (rows.fit<Value>(32 * block)) return launch_short_rows<Value, block>(exec, rows, plan, output);
    if (rows.fit<Value>(1024)) return launch_short_rows<Value, 32>(exec, rows, plan, output);
    if (rows.fit<Value>(2048)) return launch_short_rows<Value, 64>(exec, rows, plan, output);
  }
  const PoolSizes sizes = pool_sizes(plan.keep, rows.columns, threads);
  if (rows.columns >= least_long_row) {
    using Functor = SelectLongRows<Value>;
    const Functor functor{rows, sizes, output, static_cast<unsigned>(plan.rows), Functor::slots_beside(sizes)};
    const int     teams = exec.cuda_device_prop().multiProcessorCount * long_row_teams_per_sm;
    return launch_teams<32 * Functor::warps, long_row_teams_per_sm>("Tributary::topk::hopper_long_rows", exec,
                                                                    static_cast<int>(std::min<std::int64_t>(plan.rows, teams)),
                                                                    functor.scratch_bytes(), functor);
  }
  const SelectRows<Value> functor{rows, sizes, output};
  launch_teams<threads, teams_per_sm, 3>("Tributary::topk::hopper", exec, static_cast<int>(plan.rows), functor.scratch_bytes(), functor);
}

template <class Value>
void launch_parts(const Kokkos::Cuda& exec, const ValueRows& rows, const Plan& plan, const TopkOutput& output) {
  PoolSizes part_sizes = pool_sizes(plan.lists.keep, rows.columns, threads);
  part_sizes.capacity  = std::min(part_sizes.capacity, part_capacity);
  const SelectParts<Value> parts{rows, part_sizes, plan.lists};
  launch_teams<threads, teams_per_sm, 0>("Tributary::topk::hopper_parts", exec, static_cast<int>(plan.rows * plan.parts),
                                         parts.scratch_bytes(), parts);
  PoolSizes sizes = pool_sizes(plan.keep, rows.columns, merge_threads);
  sizes.capacity  = std::max(sizes.capacity, std::min(plan.parts * plan.lists.capacity, 12288));  // 96 KiB
  const JoinParts<Value> join{rows, sizes, output, plan.lists};
  launch_teams<merge_threads, 1>("Tributary::topk::hopper_join", exec, static_cast<int>(plan.rows), join.scratch_bytes(), join);
}

}  // namespace

template <>
std::string no_topk(const Kokkos::Cuda&, const TopkArguments& arguments) {
  return no_selection(rows_of(arguments), keep_of(arguments));
}

template <>
std::size_t topk_workspace_size(const Kokkos::Cuda&, const TopkArguments& arguments, const TopkOptions& options) {
  WorkspaceLayout layout;
  plan_call(arguments, options, layout);
  return layout.size();
}

template <>
void topk(const Kokkos::Cuda& exec, const TopkArguments& arguments, const TopkOptions& options, const TopkOutput& output,
          std::byte* workspace) {
  WorkspaceLayout layout(workspace);
  const Plan      plan = plan_call(arguments, options, layout);
  if (plan.rows == 0) return;
  if (log_enabled()) log("topk: Hopper level, " + std::to_string(plan.parts) + " parts of a row");
  const ValueRows rows = value_rows(arguments);
  visit_element_type(arguments.type, [&]<class Value>(std::type_identity<Value>) {
    if constexpr (!std::is_same_v<Value, float8_e4m3_t>) {
      if (plan.parts == 1)
        launch_rows<Value>(exec, rows, plan, output);
      else
        launch_parts<Value>(exec, rows, plan, output);
    }
  });
}

}  // namespace Tributary::Impl::SM90
