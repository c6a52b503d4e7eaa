#pragma once
#include <Kokkos_Core.hpp>
#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "Support.hpp"

// What an operator does to Kokkos, seen through Kokkos Tools.

namespace TributaryTest {

/// Records launches, fences, copies and allocations while it lives, and passes every event on to the callbacks that were there.
class KokkosEvents {
 public:
  struct OnDevice {
    std::string   name;
    std::uint32_t device;  // of Kokkos Tools: type, number and instance
  };
  std::vector<OnDevice>    launches, fences;
  std::vector<std::string> allocations, copies;
  std::uint64_t            allocated_bytes = 0, peak_bytes = 0;

  KokkosEvents() : before_(Kokkos::Tools::Experimental::get_callbacks()) {
    current()       = this;
    namespace Tools = Kokkos::Tools::Experimental;
    Tools::set_begin_parallel_for_callback([](const char* name, std::uint32_t device, std::uint64_t* id) {
      current()->launches.push_back({name, device});
      if (before().begin_parallel_for) before().begin_parallel_for(name, device, id);
    });
    Tools::set_begin_parallel_reduce_callback([](const char* name, std::uint32_t device, std::uint64_t* id) {
      current()->launches.push_back({name, device});
      if (before().begin_parallel_reduce) before().begin_parallel_reduce(name, device, id);
    });
    Tools::set_begin_parallel_scan_callback([](const char* name, std::uint32_t device, std::uint64_t* id) {
      current()->launches.push_back({name, device});
      if (before().begin_parallel_scan) before().begin_parallel_scan(name, device, id);
    });
    Tools::set_begin_fence_callback([](const char* name, std::uint32_t device, std::uint64_t* id) {
      // Kokkos itself fences around its calls to a tool.
      if (!std::string_view(name).starts_with("Kokkos::Tools::")) current()->fences.push_back({name, device});
      if (before().begin_fence) before().begin_fence(name, device, id);
    });
    Tools::set_begin_deep_copy_callback([](SpaceHandle to, const char* to_name, const void* to_data, SpaceHandle from,
                                           const char* from_name, const void* from_data, std::uint64_t bytes) {
      current()->copies.emplace_back(to_name);
      if (before().begin_deep_copy) before().begin_deep_copy(to, to_name, to_data, from, from_name, from_data, bytes);
    });
    Tools::set_allocate_data_callback([](SpaceHandle space, const char* name, const void* data, std::uint64_t bytes) {
      // Kokkos 4 allocates nothing, under a name, with every team policy that wants no scratch in memory.
      if (bytes > 0) current()->allocations.emplace_back(name);
      current()->allocated_bytes += bytes;
      current()->peak_bytes = std::max(current()->peak_bytes, current()->allocated_bytes);
      if (before().allocate_data) before().allocate_data(space, name, data, bytes);
    });
    Tools::set_deallocate_data_callback([](SpaceHandle space, const char* name, const void* data, std::uint64_t bytes) {
      current()->allocated_bytes -= bytes;
      if (before().deallocate_data) before().deallocate_data(space, name, data, bytes);
    });
  }
  ~KokkosEvents() { Kokkos::Tools::Experimental::set_callbacks(before_); }
  KokkosEvents(const KokkosEvents&)            = delete;
  KokkosEvents& operator=(const KokkosEvents&) = delete;

  /// Are these callbacks still the ones that Kokkos calls?
  bool installed() const {
    const auto now = Kokkos::Tools::Experimental::get_callbacks();
    return now.begin_parallel_for != nullptr && now.begin_parallel_for != before_.begin_parallel_for &&
           now.allocate_data != before_.allocate_data;
  }

 private:
  using SpaceHandle = Kokkos::Tools::SpaceHandle;

  static KokkosEvents*& current() {
    static KokkosEvents* events = nullptr;
    return events;
  }
  static const Kokkos::Tools::Experimental::EventSet& before() { return current()->before_; }

  Kokkos::Tools::Experimental::EventSet before_;
};

/// An instance that is not the default one.
inline Space another_instance() { return Kokkos::Experimental::partition_space(Space{}, std::vector<int>{1})[0]; }

/// Expects of a call that was given its workspace: it launches, on this instance alone, and neither fences, copies nor allocates.
/// (Kokkos 4 gives all instances of a host space one number: there another space's launches are seen, not another instance's.)
inline void expect_stays_on_instance(const Space& exec, const std::function<void()>& call) {
  call();  // Kokkos allocates a launch's scratch when it first needs it
  exec.fence();
  KokkosEvents events;
  call();
  EXPECT_FALSE(events.launches.empty());
  for (const auto& [name, device] : events.launches) EXPECT_EQ(device, Kokkos::Tools::Experimental::device_id(exec)) << name;
  for (const auto& [name, device] : events.fences) ADD_FAILURE() << "fences: " << name;
  for (const auto& name : events.allocations) ADD_FAILURE() << "allocates " << name;
  for (const auto& name : events.copies) ADD_FAILURE() << "copies to " << name;
  EXPECT_TRUE(events.installed()) << "replaces the caller's Kokkos Tools callbacks";
}

}  // namespace TributaryTest
