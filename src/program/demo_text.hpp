#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace Tributary::Program {

/// The word pieces of a running text; "##" continues the word before.
class DemoText {
 public:
  /// One piece a line.
  explicit DemoText(const std::filesystem::path&);

  std::int64_t size() const { return static_cast<std::int64_t>(pieces_.size()); }

  /// The text around pieces [begin, end): `context` pieces on both sides, and the pieces themselves in brackets.
  std::string around(std::int64_t begin, std::int64_t end, std::int64_t context) const;

  /// Whether piece i is a whole word, and not a short one, most of which are articles and prepositions.
  bool is_content_word(std::int64_t i) const;

 private:
  std::vector<std::string> pieces_;
};

}  // namespace Tributary::Program
