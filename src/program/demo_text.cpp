#include "demo_text.hpp"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string_view>

namespace Tributary::Program {

namespace {

bool continues_word(std::string_view piece) { return piece.size() > 2 && piece.starts_with("##"); }

/// Is there no space between the piece before and this one?
bool joined(std::string_view before, std::string_view piece) {
  constexpr std::string_view closing = ".,;:)]?!", opening = "([";
  return continues_word(piece) || (piece.size() == 1 && closing.find(piece[0]) != std::string_view::npos) ||
         (before.size() == 1 && opening.find(before[0]) != std::string_view::npos);
}

}  // namespace

DemoText::DemoText(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(path.string() + ": " + std::strerror(errno));
  for (std::string piece; std::getline(file, piece);) pieces_.push_back(piece);
}

std::string DemoText::around(std::int64_t begin, std::int64_t end, std::int64_t context) const {
  std::string text;
  for (std::int64_t i = std::max<std::int64_t>(0, begin - context); i < std::min(size(), end + context); ++i) {
    const std::string_view piece = pieces_[static_cast<std::size_t>(i)];
    if (!text.empty() && !joined(pieces_[static_cast<std::size_t>(i - 1)], piece)) text += ' ';
    if (i == begin) text += '[';
    text += continues_word(piece) ? piece.substr(2) : piece;
    if (i == end - 1) text += ']';
  }
  return text;
}

bool DemoText::is_content_word(std::int64_t i) const {
  constexpr std::size_t shortest = 7;
  const auto&           piece    = pieces_[static_cast<std::size_t>(i)];
  const bool            whole    = i + 1 == size() || !continues_word(pieces_[static_cast<std::size_t>(i + 1)]);
  return piece.size() >= shortest && whole && std::all_of(piece.begin(), piece.end(), [](unsigned char c) { return std::isalpha(c); });
}

}  // namespace Tributary::Program
