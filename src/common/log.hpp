#pragma once
#include <string>

namespace Tributary::Impl {

/// True when the environment variable TRIBUTARY_LOG is set, and not to 0; read once.
bool log_enabled();

/// One line on stderr.
void log(const std::string& line);

}  // namespace Tributary::Impl
