#include "progress.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace Tributary::Program {

Progress::Progress(std::string what, std::int64_t total) : visible_(::isatty(STDERR_FILENO) == 1), what_(std::move(what)), total_(total) {}

Progress::~Progress() {
  if (visible_) std::fputs("\r\033[K", stderr);
}

std::int64_t Progress::rows_at_a_time() const {
  constexpr std::int64_t enough = 4096;  // a GPU is full, and a CPU takes about a second
  return visible_ ? enough : std::max<std::int64_t>(total_, 1);
}

void Progress::show(std::int64_t done) {
  if (!visible_ || total_ <= 0) return;
  constexpr int width  = 40;
  const int     filled = static_cast<int>(width * static_cast<double>(done) / static_cast<double>(total_));
  std::string   bar(static_cast<std::size_t>(width), ' ');
  std::fill_n(bar.begin(), filled, '#');
  std::fprintf(stderr, "\r%s [%s] %3d%%", what_.c_str(), bar.c_str(),
               static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total_)));
  std::fflush(stderr);
}

}  // namespace Tributary::Program
