#pragma once
#include <cstdint>

namespace Tributary::Program {

/// Counts the bytes that Kokkos allocates, in every memory space together, from construction to destruction; what was allocated
/// before does not count.  It listens through Kokkos Tools and passes every event on to the callbacks that a user's tool had set.
/// One at a time.
class AllocationMeter {
 public:
  AllocationMeter();
  AllocationMeter(const AllocationMeter&)            = delete;
  AllocationMeter& operator=(const AllocationMeter&) = delete;
  ~AllocationMeter();

  std::int64_t peak_bytes() const;
};

}  // namespace Tributary::Program
