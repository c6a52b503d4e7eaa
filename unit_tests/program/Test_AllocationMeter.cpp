#include <gtest/gtest.h>

#include <Kokkos_Core.hpp>
#include <cstdint>

#include "program/allocation_meter.hpp"

using Tributary::Program::AllocationMeter;

namespace {

namespace Tools = Kokkos::Tools::Experimental;
using Bytes     = Kokkos::View<char*, Kokkos::HostSpace>;

constexpr std::size_t mib = 1 << 20;

int  user_allocations, user_deallocations;
void user_allocated(Kokkos::Tools::SpaceHandle, const char*, const void*, std::uint64_t) { ++user_allocations; }
void user_deallocated(Kokkos::Tools::SpaceHandle, const char*, const void*, std::uint64_t) { ++user_deallocations; }

// Kokkos adds a header to each allocation, and tools see it or not by version.
void expect_about(std::int64_t bytes, std::size_t expected) {
  EXPECT_GE(bytes, static_cast<std::int64_t>(expected));
  EXPECT_LT(bytes, static_cast<std::int64_t>(expected + 4096));
}

TEST(AllocationMeter, CountsThePeakOfWhatCameAfterIt) {
  Bytes                 before("before", 8 * mib);
  const AllocationMeter meter;
  EXPECT_EQ(meter.peak_bytes(), 0);
  {
    const Bytes a("a", 2 * mib);
    before = Bytes();
    const Bytes b("b", mib);
  }
  const Bytes c("c", 2 * mib);
  expect_about(meter.peak_bytes(), 3 * mib);
}

TEST(AllocationMeter, PassesEventsOnAndRestoresCallbacks) {
  const Tools::EventSet found = Tools::get_callbacks();
  Tools::set_allocate_data_callback(user_allocated);
  Tools::set_deallocate_data_callback(user_deallocated);
  user_allocations = user_deallocations = 0;
  {
    const AllocationMeter meter;
    const Bytes           a("a", mib);
    expect_about(meter.peak_bytes(), mib);
  }
  EXPECT_EQ(user_allocations, 1);
  EXPECT_EQ(user_deallocations, 1);
  EXPECT_EQ(Tools::get_callbacks().allocate_data, user_allocated);
  EXPECT_EQ(Tools::get_callbacks().deallocate_data, user_deallocated);
  { const Bytes a("a", mib); }
  EXPECT_EQ(user_allocations, 2);
  EXPECT_EQ(user_deallocations, 2);
  Tools::set_callbacks(found);
}

}  // namespace
