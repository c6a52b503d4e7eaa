#include "input_file.hpp"

#include <algorithm>
#include <stdexcept>

namespace Tributary::Program {

namespace {

std::size_t rank_of(const Layout& layout) {
  return 1 + static_cast<std::size_t>(std::count(layout.dimensions.begin(), layout.dimensions.end(), ','));
}

std::string text(const Layout& layout, bool batched) { return (batched ? "[B, " : "[") + std::string(layout.dimensions) + "]"; }

}  // namespace

CLI::Option* InputFile::add(CLI::App& app, const std::string& name, const std::string& description, const std::string& type_name) {
  option_ = app.add_option(name, path_, description)->type_name(type_name);
  return option_;
}

void InputFile::open(std::initializer_list<NpyType> types) {
  if (!given()) return;
  file_.emplace(path_);
  require_type(*file_, types);
}

void require_type(const NpyFile& file, std::initializer_list<NpyType> expected) {
  std::string list;
  for (const NpyType type : expected) {
    if (file.type() == type) return;
    list += (list.empty() ? "" : " or ") + std::string(name_of(type));
  }
  throw std::invalid_argument(file.path().string() + ": has " + std::string(name_of(file.type())) + " elements, expected " + list);
}

void require_rank(const NpyFile& file, std::size_t rank, std::string_view layout) {
  if (file.shape().size() != rank)
    throw std::invalid_argument(file.path().string() + ": has shape " + to_string(file.shape()) + ", expected " + std::string(layout));
}

void require_extent(const NpyFile& file, std::size_t d, std::int64_t expected, std::string_view what, std::string_view source) {
  const auto given = file.shape()[file.shape().size() - 1 - d];
  if (given != expected)
    throw std::invalid_argument(file.path().string() + ": has " + std::string(what) + " " + std::to_string(given) + " in its shape " +
                                to_string(file.shape()) + ", " + std::string(source) + " has " + std::to_string(expected));
}

bool require_layout(const NpyFile& file, const Layout& layout) {
  const bool batched = file.shape().size() == rank_of(layout) + 1;
  if (!batched) require_rank(file, rank_of(layout), std::string(layout.name) + " " + text(layout, false) + " or " + text(layout, true));
  return batched;
}

void require_layout(const NpyFile& file, const Layout& layout, const NpyFile& leader, const Layout& of_leader) {
  const bool        batched = leader.shape().size() > rank_of(of_leader);
  const std::size_t rank    = rank_of(layout);
  require_rank(
      file, rank + (batched ? 1 : 0),
      std::string(layout.name) + " " + text(layout, batched) + " as " + std::string(of_leader.name) + " is " + text(of_leader, batched));
  if (batched) require_extent(file, rank, leader.shape()[0], "batch", leader.path().string());
}

}  // namespace Tributary::Program
