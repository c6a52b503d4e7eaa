#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>

#include "common/workers.hpp"

// What a kernel of this level needs in the workspace before it starts.

namespace Tributary::Impl::SM90 {

/// Puts maps where the kernel finds them, also in a graph that is replayed, and empties the queue of work items.
template <class Maps>
struct PrepareMaps {
  Maps          maps;
  Maps*         to;
  std::int32_t* next_item;

  KOKKOS_FUNCTION void operator()(int) const {
    *to        = maps;
    *next_item = 0;
  }
};

template <class Maps>
void prepare_maps(const char* label, const Kokkos::Cuda& exec, const Maps& maps, void* to, std::int32_t* next_item) {
  Kokkos::parallel_for(label, ElementPolicy<Kokkos::Cuda>(exec, 0, 1), PrepareMaps<Maps>{maps, static_cast<Maps*>(to), next_item});
}

}  // namespace Tributary::Impl::SM90
