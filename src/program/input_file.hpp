#pragma once
#include <CLI/CLI.hpp>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "npy.hpp"

// The .npy files that options name, and what a file must be: its element type, its dimensions, its extents beside those of others.
// Each check throws std::invalid_argument of one line that begins with the file's path.

namespace Tributary::Program {

/// An option that names a .npy file to read.
class InputFile {
 public:
  CLI::Option* add(CLI::App&, const std::string& name, const std::string& description, const std::string& type_name);
  CLI::Option* option() const { return option_; }
  bool         given() const { return option_->count() > 0; }
  /// Maps the file if it is given; throws unless it holds one of these types.
  void           open(std::initializer_list<NpyType>);
  const NpyFile& operator*() const { return *file_; }
  const NpyFile* operator->() const { return &*file_; }
  std::string    path() const { return file_->path().string(); }
  /// The extent of dimension `d`, counted from the last (0).
  std::int64_t extent(std::size_t d) const { return *(file_->shape().rbegin() + static_cast<std::ptrdiff_t>(d)); }
  /// The extent of a batch before these dimensions; 1 where the file has none.
  std::int64_t batch(std::size_t dimensions) const { return file_->shape().size() > dimensions ? file_->shape()[0] : 1; }

 private:
  CLI::Option*           option_ = nullptr;
  std::string            path_;
  std::optional<NpyFile> file_;
};

/// What an array is and its dimensions behind those of a batch: {"query", "S, H, D"}.
struct Layout {
  std::string_view name, dimensions;
};

void require_type(const NpyFile&, std::initializer_list<NpyType>);
/// `layout` is written like "[S, H, D]".
void require_rank(const NpyFile&, std::size_t rank, std::string_view layout);
/// Dimension `d`, counted from the last (0), is `expected`, which `source` has.
void require_extent(const NpyFile&, std::size_t d, std::int64_t expected, std::string_view what, std::string_view source);
/// The dimensions are the layout's, with or without a batch before them.  Returns whether there is one.
bool require_layout(const NpyFile&, const Layout&);
/// The dimensions are the layout's, with a batch before them iff `leader` has one, and the same.
void require_layout(const NpyFile&, const Layout&, const NpyFile& leader, const Layout& of_leader);

}  // namespace Tributary::Program
