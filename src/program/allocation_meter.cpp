#include "allocation_meter.hpp"

#include <Kokkos_Core.hpp>
#include <algorithm>
#include <mutex>
#include <unordered_map>

namespace Tributary::Program {

namespace {

namespace Tools = Kokkos::Tools::Experimental;

// Callbacks carry no argument of ours, hence one state for the process.
struct State {
  std::mutex                                     mutex;
  std::unordered_map<const void*, std::uint64_t> live;  // an address freed that is not here was allocated before
  std::int64_t                                   current = 0, peak = 0;
  Tools::EventSet                                user;
};
State state;

void allocated(Kokkos::Tools::SpaceHandle space, const char* label, const void* address, std::uint64_t size) {
  {
    const std::lock_guard lock(state.mutex);
    state.live[address] = size;
    state.current += static_cast<std::int64_t>(size);
    state.peak = std::max(state.peak, state.current);
  }
  if (state.user.allocate_data) state.user.allocate_data(space, label, address, size);
}

void deallocated(Kokkos::Tools::SpaceHandle space, const char* label, const void* address, std::uint64_t size) {
  {
    const std::lock_guard lock(state.mutex);
    if (const auto entry = state.live.find(address); entry != state.live.end()) {
      state.current -= static_cast<std::int64_t>(entry->second);
      state.live.erase(entry);
    }
  }
  if (state.user.deallocate_data) state.user.deallocate_data(space, label, address, size);
}

}  // namespace

AllocationMeter::AllocationMeter() {
  state.live.clear();
  state.current = state.peak = 0;
  state.user                 = Tools::get_callbacks();
  Tools::set_allocate_data_callback(allocated);
  Tools::set_deallocate_data_callback(deallocated);
}

AllocationMeter::~AllocationMeter() {
  Tools::set_allocate_data_callback(state.user.allocate_data);
  Tools::set_deallocate_data_callback(state.user.deallocate_data);
}

std::int64_t AllocationMeter::peak_bytes() const {
  const std::lock_guard lock(state.mutex);
  return state.peak;
}

}  // namespace Tributary::Program
