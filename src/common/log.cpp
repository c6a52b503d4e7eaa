#include "common/log.hpp"

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace Tributary::Impl {

bool log_enabled() {
  static const bool enabled = [] {
    const char* value = std::getenv("TRIBUTARY_LOG");
    return value != nullptr && !std::string_view(value).empty() && std::string_view(value) != "0";
  }();
  return enabled;
}

void log(const std::string& line) { std::fprintf(stderr, "Tributary: %s\n", line.c_str()); }

}  // namespace Tributary::Impl
