#include <unistd.h>

#include <Kokkos_Core.hpp>
#include <Tributary_Indexer.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "allocation_meter.hpp"
#include "arrays.hpp"
#include "backend.hpp"
#include "command.hpp"
#include "demo_parity.hpp"
#include "demo_picture.hpp"
#include "demo_text.hpp"
#include "input_file.hpp"
#include "options.hpp"
#include "output_files.hpp"

namespace Tributary::Program {

namespace {

constexpr std::int32_t tokens_per_key = 4;

/// The shipped input: beside the installed program, else in the source tree it was built from.
std::filesystem::path default_data_folder() {
  std::error_code error;
  const auto      program   = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto      installed = program.parent_path() / TRIBUTARY_INSTALLED_DATA;
  if (!error && std::filesystem::is_directory(installed, error)) return installed.lexically_normal();
  return TRIBUTARY_SOURCE_DATA;
}

class DemoCommand : public Command {
 public:
  explicit DemoCommand(CLI::App& app) {
    app.add_option("--data", data_, "Folder with query.npy, key.npy, weights.npy and tokens.txt (default: the shipped one)")
        ->type_name("DIR");
    app.add_option("--output", picture_path_, "The picture (default " + picture_path_ + ")")->type_name("OUT.svg");
    add_top_k(app, top_k_);
    add_level(app, level_);
    add_backend(app, backend_);
  }

  void check() override {
    const std::filesystem::path data = data_.empty() ? default_data_folder() : std::filesystem::path(data_);
    query_.emplace(data / "query.npy");
    key_.emplace(data / "key.npy");
    weights_.emplace(data / "weights.npy");
    text_.emplace(data / "tokens.txt");
    for (const auto* file : {&*query_, &*key_, &*weights_}) require_type(*file, {NpyType::float32, NpyType::float16});
    require_rank(*query_, 3, "query [S, H, D]");
    require_rank(*key_, 2, "key [T, D]");
    require_rank(*weights_, 2, "weights [S, H]");
    queries_  = query_->shape()[0];
    heads_    = query_->shape()[1];
    head_dim_ = query_->shape()[2];
    keys_     = key_->shape()[0];
    require_extent(*key_, 0, head_dim_, "head dimension", "query.npy");
    require_extent(*weights_, 0, heads_, "heads", "query.npy");
    require_extent(*weights_, 1, queries_, "queries", "query.npy");
    if (text_->size() != queries_)
      throw std::invalid_argument("tokens.txt has " + std::to_string(text_->size()) + " lines, query.npy " + std::to_string(queries_) +
                                  " queries");
    if (queries_ == 0 || keys_ == 0 || keys_ > queries_ / tokens_per_key)
      throw std::invalid_argument("the demo needs one key for " + std::to_string(tokens_per_key) + " queries, key.npy has " +
                                  std::to_string(keys_) + " keys, query.npy " + std::to_string(queries_) + " queries");
    OutputFiles::require_writable(picture_path_);
  }

  int run() override {
    DemoResult result;
    visit_backend(backend_, [&](const auto& exec) { result = compute(exec); });
    print_cost();
    const bool right = print_parity(result);
    print_choices(result);
    write_picture(result);
    return right ? 0 : 1;
  }

 private:
  template <class Exec>
  DemoResult compute(const Exec& exec) {
    using Device = Kokkos::Device<Exec, typename Exec::memory_space>;
    DemoResult result;
    result.query                 = read_view<decltype(result.query)>(*query_, {1, queries_, heads_, head_dim_});
    result.key                   = read_view<decltype(result.key)>(*key_, {1, keys_, head_dim_});
    result.weights               = read_view<decltype(result.weights)>(*weights_, {1, queries_, heads_});
    result.ratio                 = tokens_per_key;
    const auto           query   = Kokkos::create_mirror_view_and_copy(Device{}, result.query);
    const auto           key     = Kokkos::create_mirror_view_and_copy(Device{}, result.key);
    const auto           weights = Kokkos::create_mirror_view_and_copy(Device{}, result.weights);
    const auto           indices = make_view<Kokkos::View<std::int32_t***, Kokkos::LayoutRight, Device>>("indices", {1, queries_, top_k_});
    const auto           scores  = make_view<Kokkos::View<float***, Kokkos::LayoutRight, Device>>("scores", {1, queries_, top_k_});
    const IndexerOptions options{.legal_keys = RatioCausal{.ratio = tokens_per_key}, .level = level_};
    {
      const AllocationMeter meter;
      measured_.seconds    = median_seconds([&] {
        indexer_topk(exec, query, key, weights, indices, scores, options);
        exec.fence("tributary: time");
      });
      measured_.peak_bytes = meter.peak_bytes();
    }
    for (std::int64_t t = 0; t < queries_; ++t) legal_pairs_ += static_cast<double>(std::min(keys_, (t + 1) / tokens_per_key));
    measured_.operations = 2.0 * static_cast<double>(heads_ * head_dim_) * legal_pairs_;
    result.indices       = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, indices);
    result.scores        = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, scores);
    return result;
  }

  /// Of some runs after a first one, as many as about a second allows.
  template <class Function>
  static double median_seconds(const Function& function) {
    constexpr std::size_t most_runs = 9;
    const Kokkos::Timer   total;
    function();
    std::vector<double> seconds;
    do {
      const Kokkos::Timer timer;
      function();
      seconds.push_back(timer.seconds());
    } while (seconds.size() < most_runs && total.seconds() < 1);
    std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2), seconds.end());
    return seconds[seconds.size() / 2];
  }

  static double summed_bytes(double queries, double keys) { return queries * keys * sizeof(float); }

  void print_cost() const {
    const auto       q = static_cast<double>(queries_), k = static_cast<double>(keys_), h = static_cast<double>(heads_);
    constexpr double long_text = 1 << 20;
    std::printf("Lightning indexer over a real text: %lld queries (tokens) x %lld keys (one for %d tokens), %lld heads of %lld, top %lld\n",
                static_cast<long long>(queries_), static_cast<long long>(keys_), tokens_per_key, static_cast<long long>(heads_),
                static_cast<long long>(head_dim_), static_cast<long long>(top_k_));
    std::printf("  computed by          level %s on %s\n", std::string(name_of(level_taken(level_))).c_str(), backend_.c_str());
    std::printf("  time                 %s (median), %.3g TFLOP/s of legal work\n", readable_seconds(measured_.seconds).c_str(),
                measured_.teraflops());
    std::printf("  peak memory          %s beyond inputs and outputs\n", readable_bytes(static_cast<double>(measured_.peak_bytes)).c_str());
    std::printf("  stored scores take   %s by head, %s summed over heads\n", readable_bytes(h * summed_bytes(q, k)).c_str(),
                readable_bytes(summed_bytes(q, k)).c_str());
    std::printf("    at 1048576 tokens  %s by head, %s summed over heads\n",
                readable_bytes(h * summed_bytes(long_text, long_text / tokens_per_key)).c_str(),
                readable_bytes(summed_bytes(long_text, long_text / tokens_per_key)).c_str());
  }

  static bool print_parity(const DemoResult& result) {
    constexpr std::int64_t rows   = 64;
    const Parity           parity = check_parity(result, rows);
    if (parity.failed_rows > 0)
      std::printf("  parity               FAILED in %lld of %lld rows; %s\n", static_cast<long long>(parity.failed_rows),
                  static_cast<long long>(parity.rows), parity.first_failure.c_str());
    else
      std::printf(
          "  parity               %lld rows agree with the reference: scores within %.2g, error bound e <= %.2g, keys by the 2e rule\n",
          static_cast<long long>(parity.rows), parity.largest_error, parity.largest_bound);
    return parity.failed_rows == 0;
  }

  /// The query in [begin, end) that is a content word and found the highest score, or -1.
  std::int64_t strongest_query(const DemoResult& result, std::int64_t begin, std::int64_t end) const {
    std::int64_t strongest = -1;
    for (std::int64_t t = begin; t < end; ++t)
      if (text_->is_content_word(t) && result.indices(0, t, 0) >= 0 &&
          (strongest < 0 || result.scores(0, t, 0) > result.scores(0, strongest, 0)))
        strongest = t;
    return strongest;
  }

  void print_choices(const DemoResult& result) const {
    constexpr std::int64_t parts = 4;
    std::printf(
        "\nWhat queries chose, from each quarter of the text the word with the highest score: the query's token, then its best keys'\n"
        "%d tokens, in brackets, with their scores\n",
        tokens_per_key);
    for (std::int64_t part = 0; part < parts; ++part) {
      const auto t = strongest_query(result, queries_ * part / parts, queries_ * (part + 1) / parts);
      if (t >= 0) print_choices_of(result, t);
    }
  }

  void print_choices_of(const DemoResult& result, std::int64_t t) const {
    constexpr std::int64_t context = 7, keys_shown = 4;
    std::printf("\n  token %lld   ... %s ...\n", static_cast<long long>(t), text_->around(t, t + 1, context).c_str());
    for (std::int64_t i = 0; i < std::min(keys_shown, top_k_); ++i) {
      const std::int64_t s = result.indices(0, t, i);
      if (s < 0) break;
      const auto first = s * tokens_per_key;
      std::printf("    %8.3f  tokens %4lld-%-4lld  ... %s ...\n", static_cast<double>(result.scores(0, t, i)),
                  static_cast<long long>(first), static_cast<long long>(first + tokens_per_key - 1),
                  text_->around(first, first + tokens_per_key, context).c_str());
    }
  }

  void write_picture(const DemoResult& result) const {
    const std::string subtitle = std::to_string(queries_) + " tokens of licence texts, " + std::to_string(keys_) + " keys, " +
                                 std::to_string(heads_) + " heads of " + std::to_string(head_dim_) +
                                 "; queries and keys of all-MiniLM-L6-v2, layer 3";
    const Choices choices{.queries = queries_,
                          .keys    = keys_,
                          .top_k   = top_k_,
                          .ratio   = tokens_per_key,
                          .indices = {result.indices.data(), result.indices.size()}};
    const auto    picture = picture_of(choices, subtitle);
    OutputFiles   files;
    files.write(picture_path_, {picture});
    files.commit();
    std::printf("\nPicture of all choices: %s\n", picture_path_.c_str());
  }

  std::string  data_, picture_path_ = "tributary-demo.svg", backend_;
  std::int64_t top_k_ = 64;
  Level        level_ = Level::automatic;

  std::optional<NpyFile>  query_, key_, weights_;
  std::optional<DemoText> text_;
  std::int64_t            queries_ = 0, keys_ = 0, heads_ = 0, head_dim_ = 0;
  double                  legal_pairs_ = 0;
  Measured                measured_;
};

}  // namespace

std::unique_ptr<Command> make_demo(CLI::App& app) { return std::make_unique<DemoCommand>(app); }

}  // namespace Tributary::Program
