#include "impl/Tributary_Require.hpp"

#include <stdexcept>

namespace Tributary::Impl {

void throw_invalid_argument(std::string_view pattern, std::initializer_list<MessageArgument> arguments) {
  std::string message  = "Tributary: ";
  auto        argument = arguments.begin();
  for (std::size_t hole; (hole = pattern.find("{}")) != std::string_view::npos && argument != arguments.end(); ++argument) {
    message.append(pattern.substr(0, hole)).append(argument->text());
    pattern.remove_prefix(hole + 2);
  }
  throw std::invalid_argument(message.append(pattern));
}

}  // namespace Tributary::Impl
