#pragma once
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace Tributary::Impl {

/// A value to be named in an error message.
class MessageArgument {
 public:
  MessageArgument(std::integral auto value) : text_(std::to_string(value)) {}
  MessageArgument(std::floating_point auto value) : text_(std::to_string(value)) {}
  MessageArgument(std::string_view value) : text_(value) {}
  MessageArgument(const char* value) : text_(value) {}
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

/// Throws std::invalid_argument("Tributary: " + pattern), each {} in the pattern replaced by the next argument.
[[noreturn]] void throw_invalid_argument(std::string_view pattern, std::initializer_list<MessageArgument> arguments);

/// The check in front of every public operator.  The pattern names function, argument, expected and given.
template <class... Arguments>
void require(bool holds, std::string_view pattern, const Arguments&... arguments) {
  if (!holds) throw_invalid_argument(pattern, {MessageArgument(arguments)...});
}

}  // namespace Tributary::Impl
