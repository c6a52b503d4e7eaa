#pragma once
#include <CLI/CLI.hpp>
#include <Tributary_Level.hpp>
#include <Tributary_Topk.hpp>
#include <Tributary_Types.hpp>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "npy.hpp"

// What several subcommands share: options, output files, the report.

namespace Tributary::Program {

/// An option that takes one of a few words.
template <class T>
void add_choice(CLI::App& app, const std::string& name, const std::string& description, T& value,
                std::vector<std::pair<std::string, T>> choices) {
  std::vector<std::string> words;
  words.reserve(choices.size());
  for (const auto& choice : choices) words.push_back(choice.first);
  app.add_option_function<std::string>(
         name,
         [&value, choices = std::move(choices)](const std::string& given) {
           for (const auto& [word, meaning] : choices)
             if (word == given) value = meaning;
         },
         description)
      ->check(CLI::IsMember(words))
      ->type_name("");
}

void add_top_k(CLI::App&, std::int64_t& top_k);
void add_order(CLI::App&, TopkOrder&);
void add_level(CLI::App&, Level&);
/// What `rounded`, some inputs' names, are rounded to.  `scales` says which rows share a scale in e4m3.
void add_dtype(CLI::App&, const std::string& rounded, const std::string& scales, ElementType&);
void add_backend(CLI::App&, std::string& backend);

/// --indices and --scores.
struct TopkOutputs {
  std::string indices, scores;

  void add(CLI::App&);
  /// Throws where `shape` is too large or a file could not be written.
  void check(const Shape& shape) const;
  bool wants_scores() const { return !scores.empty(); }
  /// Both files or none.
  void write(const Shape& shape, std::string_view indices_bytes, std::string_view scores_bytes) const;
};

/// Throws where a file of this shape, 4 bytes an element, would be too large.
void require_storable(const Shape&);

std::string_view name_of(TopkOrder);
std::string_view name_of(ElementType);  // as --dtype has it

/// What `automatic` means where the portable level is the fastest there is; `automatic` itself in builds with the Hopper level.
Level level_taken(Level wanted);

/// What a run took, and what came of it.
struct Measured {
  double       seconds    = 0;  ///< the operator alone, fenced: no reading, converting or writing
  double       operations = 0;  ///< floating-point operations on legal (query, key) pairs
  std::int64_t peak_bytes = 0;  ///< allocated beyond inputs and outputs at the worst moment

  double teraflops() const { return seconds > 0 ? operations / seconds * 1e-12 : 0; }
};

std::string readable_bytes(double bytes);      // "12.3 MiB"
std::string readable_seconds(double seconds);  // "12.3 ms"

}  // namespace Tributary::Program
