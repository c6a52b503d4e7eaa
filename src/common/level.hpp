#pragma once
#include <string>
#include <string_view>

#include "common/check.hpp"
#include "common/workers.hpp"
#include "sm90/device.hpp"

// The level of a call, for operators that have a Hopper level.

namespace Tributary::Impl {

/// What the level is wanted for: only the call itself says in the log why it goes without the Hopper level.
enum class LevelFor { workspace_size, call };

/// \param no_hopper  () -> why the Hopper level cannot take the call, empty if it can; asked where build and device have that level
template <class Exec, class NoHopper>
Level choose_level(std::string_view function, [[maybe_unused]] const Exec& exec, Level wanted, [[maybe_unused]] LevelFor purpose,
                   [[maybe_unused]] const NoHopper& no_hopper) {
  std::string reason = no_sm90;
  if constexpr (has_sm90<Exec>) {
    const bool runs = sm90_code_runs(exec.cuda_device());
    reason          = runs ? no_hopper() : "the device has not compute capability 9.0";
    if (runs && purpose == LevelFor::call) log_no_hopper(function, wanted, reason);
  }
  return choose_level(function, wanted, host_memory<Exec>, reason);
}

}  // namespace Tributary::Impl
