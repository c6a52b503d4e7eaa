#pragma once
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace Tributary::Program {

/// Files that appear whole and all together, or not at all: each is written under a temporary name in its own folder and renamed
/// when all are complete.
class OutputFiles {
 public:
  OutputFiles()                              = default;
  OutputFiles(const OutputFiles&)            = delete;
  OutputFiles& operator=(const OutputFiles&) = delete;
  ~OutputFiles();

  /// A path and the option that gave it.
  struct Named {
    std::string           option;
    std::filesystem::path path;
  };
  /// Throws std::invalid_argument where two paths lead to the same file, which need not exist yet, std::runtime_error where one could not
  /// be written; to be asked before long work.
  static void require_distinct_and_writable(const std::vector<Named>&);

  /// Throws std::runtime_error where a file could not be written there.
  static void require_writable(const std::filesystem::path&);

  void write(const std::filesystem::path&, const std::vector<std::string_view>& parts);
  void commit();

 private:
  struct File {
    std::filesystem::path target, temporary;
  };
  std::vector<File> files_;
};

}  // namespace Tributary::Program
