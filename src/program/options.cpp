#include "options.hpp"

#include <Tributary_Config.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
#include <stdexcept>

#include "backend.hpp"
#include "output_files.hpp"

namespace Tributary::Program {

void add_top_k(CLI::App& app, std::int64_t& top_k) {
  constexpr std::int64_t most = (std::int64_t{1} << 29) - 1;  // the library's own limit
  app.add_option("--top-k", top_k, "How many to keep of every row")->check(CLI::Range(std::int64_t{1}, most))->type_name("N");
}

void add_order(CLI::App& app, TopkOrder& order) {
  add_choice(app, "--order", "Order of a row's entries: score (default, best first) or index (smallest first)", order,
             {{"score", TopkOrder::by_score}, {"index", TopkOrder::by_index}});
}

void add_level(CLI::App& app, Level& level) {
  add_choice(app, "--level", "Who computes: auto (default, the fastest that supports the input), reference, portable or hopper", level,
             {{"auto", Level::automatic}, {"reference", Level::reference}, {"portable", Level::portable}, {"hopper", Level::hopper}});
}

void add_dtype(CLI::App& app, const std::string& rounded, const std::string& scales, ElementType& dtype) {
  add_choice(
      app, "--dtype", "What " + rounded + " are rounded to: f32 (default), bf16, f16 or e4m3 (" + scales + ")", dtype,
      {{"f32", ElementType::float32}, {"bf16", ElementType::bfloat16}, {"f16", ElementType::float16}, {"e4m3", ElementType::float8_e4m3}});
}

void add_backend(CLI::App& app, std::string& backend) {
  const auto  names = backend_names();
  std::string list;
  for (const auto& name : names) list += (list.empty() ? "" : name == names.back() ? " and " : ", ") + name;
  backend = default_backend();
  app.add_option("--backend", backend, "Where: " + list + " (default " + backend + ")")
      ->check(CLI::Validator(
          [names, list](const std::string& given) {
            return std::find(names.begin(), names.end(), given) != names.end()
                       ? std::string()
                       : "no backend '" + given + "' in this build, which has " + list;
          },
          ""))
      ->type_name("");
}

void TopkOutputs::add(CLI::App& app) {
  app.add_option("--indices", indices, "Output: chosen indices, int32; -1 where a row has fewer")->required()->type_name("OUT.npy");
  app.add_option("--scores", scores, "Output: their scores, float32; -inf beside an index of -1")->type_name("OUT.npy");
}

void TopkOutputs::check(const Shape& shape) const {
  require_storable(shape);
  std::vector<OutputFiles::Named> files{{"--indices", indices}};
  if (wants_scores()) files.push_back({"--scores", scores});
  OutputFiles::require_distinct_and_writable(files);
}

void TopkOutputs::write(const Shape& shape, std::string_view indices_bytes, std::string_view scores_bytes) const {
  OutputFiles files;
  files.write(indices, {npy_header(NpyType::int32, shape), indices_bytes});
  if (wants_scores()) files.write(scores, {npy_header(NpyType::float32, shape), scores_bytes});
  files.commit();
}

void require_storable(const Shape& shape) {
  std::int64_t bytes = 4;
  for (const auto extent : shape)
    if (extent != 0 && __builtin_mul_overflow(bytes, extent, &bytes))
      throw std::invalid_argument("the output " + to_string(shape) + " would be too large");
}

Level level_taken(Level wanted) {
#if defined(TRIBUTARY_ENABLE_SM90)
  return wanted;  // on a GPU `automatic` depends on the call
#else
  return wanted == Level::automatic ? Level::portable : wanted;
#endif
}

std::string_view name_of(ElementType type) {
  constexpr std::array names{"f32", "bf16", "f16", "e4m3"};
  return names[static_cast<std::size_t>(type)];
}

std::string_view name_of(TopkOrder order) { return order == TopkOrder::by_score ? "score" : "index"; }

namespace {

std::string formatted(const char* format, double value, const char* unit) {
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), format, value, unit);
  return text.data();
}

}  // namespace

std::string readable_bytes(double bytes) {
  constexpr std::array units{"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
  std::size_t          unit = 0;
  for (; bytes >= 1024 && unit + 1 < units.size(); ++unit) bytes /= 1024;
  return formatted(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

std::string readable_seconds(double seconds) {
  return seconds < 1 ? formatted("%.3g %s", seconds * 1e3, "ms") : formatted("%.3g %s", seconds, "s");
}

}  // namespace Tributary::Program
