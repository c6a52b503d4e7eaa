#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <thread>

// Sums that many workers add to, each term in its turn: the result is the one of a single worker, to the bit.  For host spaces: a
// waiting worker gives its core away, and items are taken in order, so that whatever an item waits for has been taken by a worker that
// runs, however few there are.

namespace Tributary::Impl {

/// Items 0, 1, ... for whoever comes next.
struct ItemQueue {
  std::int64_t* next;  // 0 before the launch

  KOKKOS_INLINE_FUNCTION std::int64_t take() const { return Kokkos::atomic_fetch_add(next, std::int64_t{1}); }
};

/// One item's place in a chain of items that pass the same stations in the same order.
struct Turn {
  const std::int64_t* before;  // how far the item before has come; null: this one is the first
  std::int64_t*       mine;    // 0 before the launch

  /// Until the items before have left everything below `station`.
  KOKKOS_INLINE_FUNCTION void await([[maybe_unused]] std::int64_t station) const {
    if (before == nullptr) return;
    while (Kokkos::atomic_load(before) < station) {
      KOKKOS_IF_ON_HOST((std::this_thread::yield();))
    }
    Kokkos::memory_fence();
  }
  /// After await(station): this item has left it, too.
  KOKKOS_INLINE_FUNCTION void leave(std::int64_t station) const {
    Kokkos::memory_fence();
    Kokkos::atomic_store(mine, station);
  }
};

}  // namespace Tributary::Impl
