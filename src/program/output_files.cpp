#include "output_files.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace Tributary::Program {

namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& reason) {
  throw std::runtime_error(path.string() + ": cannot be written: " + reason);
}

/// Where the file goes: through symbolic links, which stay.
std::filesystem::path target_of(const std::filesystem::path& path) {
  std::error_code error;
  const auto      status = std::filesystem::status(path, error);
  if (std::filesystem::is_directory(status)) fail(path, "it is a folder");
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) fail(path, "it is not a regular file");
  if (path.filename().empty()) fail(path, "no file name");
  const auto resolved = std::filesystem::weakly_canonical(path, error);
  return error ? path : resolved;
}

/// A new file in the target's folder.
int create_temporary(const std::filesystem::path& path, const std::filesystem::path& target, std::filesystem::path& temporary) {
  for (int attempt = 0;; ++attempt) {
    std::string name(".");
    name.append(target.filename().string())
        .append(".")
        .append(std::to_string(::getpid()))
        .append(".")
        .append(std::to_string(attempt))
        .append(".part");
    temporary      = target.parent_path() / name;
    const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file >= 0) return file;
    if (errno != EEXIST || attempt == 100) fail(path, std::strerror(errno));
  }
}

bool write_all(int file, std::string_view bytes) {
  constexpr std::size_t most = std::size_t{1} << 30;  // Linux writes at most 2 GiB at a time
  while (!bytes.empty()) {
    const auto written = ::write(file, bytes.data(), std::min(bytes.size(), most));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

}  // namespace

void OutputFiles::require_writable(const std::filesystem::path& path) {
  std::filesystem::path temporary;
  ::close(create_temporary(path, target_of(path), temporary));
  ::unlink(temporary.c_str());
}

void OutputFiles::require_distinct_and_writable(const std::vector<Named>& files) {
  // absolute first: "x" and "./x" stay different where no x exists
  const auto place = [](const Named& file) { return std::filesystem::weakly_canonical(std::filesystem::absolute(file.path)); };
  for (auto a = files.begin(); a != files.end(); ++a)
    for (auto b = files.begin(); b != a; ++b)
      if (place(*b) == place(*a)) throw std::invalid_argument(b->option + " and " + a->option + " name the same file");
  for (const Named& file : files) require_writable(file.path);
}

void OutputFiles::write(const std::filesystem::path& path, const std::vector<std::string_view>& parts) {
  File      output{target_of(path), {}};
  const int file = create_temporary(path, output.target, output.temporary);
  files_.push_back(output);
  bool complete = true;
  for (const auto part : parts) complete = complete && write_all(file, part);
  int error = complete ? 0 : errno;
  if (::close(file) != 0 && error == 0) error = errno;
  if (error != 0) fail(path, std::strerror(error));
}

void OutputFiles::commit() {
  for (std::size_t i = 0; i < files_.size(); ++i)
    if (::rename(files_[i].temporary.c_str(), files_[i].target.c_str()) != 0) {
      const std::string reason = std::strerror(errno);
      for (std::size_t j = 0; j < i; ++j) ::unlink(files_[j].target.c_str());
      const auto path = files_[i].target;
      files_.erase(files_.begin(), files_.begin() + static_cast<std::ptrdiff_t>(i));
      fail(path, reason);
    }
  files_.clear();
}

OutputFiles::~OutputFiles() {
  for (const File& file : files_) ::unlink(file.temporary.c_str());
}

}  // namespace Tributary::Program
