#pragma once
#include <cstdint>
#include <string>

namespace Tributary::Program {

/// A bar on stderr, drawn only where stderr is a terminal.
class Progress {
 public:
  Progress(std::string what, std::int64_t total);
  Progress(const Progress&)            = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();  ///< wipes the bar

  /// How many of `total` rows to work on between two reports: all at once where nobody looks.
  std::int64_t rows_at_a_time() const;
  void         show(std::int64_t done);

 private:
  bool         visible_;
  std::string  what_;
  std::int64_t total_;
};

}  // namespace Tributary::Program
