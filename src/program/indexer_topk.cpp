#include <Kokkos_Core.hpp>
#include <Tributary_Indexer.hpp>
#include <Tributary_Quantize.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "allocation_meter.hpp"
#include "arrays.hpp"
#include "backend.hpp"
#include "command.hpp"
#include "input_file.hpp"
#include "options.hpp"
#include "progress.hpp"

namespace Tributary::Program {

namespace {

constexpr std::int64_t largest_int32 = std::numeric_limits<std::int32_t>::max();

template <class Data, class Exec>
using DeviceView = Kokkos::View<Data, Kokkos::LayoutRight, Kokkos::Device<Exec, typename Exec::memory_space>>;

/// The inputs in the backend's memory, in the element type to compute with.
template <class Exec, Element T>
struct Inputs {
  DeviceView<T****, Exec>           query;
  DeviceView<T***, Exec>            key;
  DeviceView<float***, Exec>        weights;
  DeviceView<float***, Exec>        query_scale;  // e4m3 only, like key_scale
  DeviceView<float**, Exec>         key_scale;
  DeviceView<std::int32_t***, Exec> range;  // --range only
};

using Queries = std::pair<std::int64_t, std::int64_t>;

template <class View>
auto of_queries(const View& view, const Queries& queries) {
  if constexpr (View::rank() == 4)
    return Kokkos::subview(view, Kokkos::ALL, queries, Kokkos::ALL, Kokkos::ALL);
  else
    return Kokkos::subview(view, Kokkos::ALL, queries, Kokkos::ALL);
}

class IndexerTopkCommand : public Command {
 public:
  explicit IndexerTopkCommand(CLI::App& app) {
    query_.add(app, "--query", "Queries [S, H, D] or [B, S, H, D], float32 or float16", "Q.npy")->required();
    key_.add(app, "--key", "Keys [T, D] or [B, T, D]", "K.npy")->required();
    weights_.add(app, "--weights", "Head weights [S, H] or [B, S, H]", "W.npy")->required();
    add_top_k(app, top_k_);
    app.get_option("--top-k")->required();
    const auto* causal = app.add_option("--causal-ratio", causal_ratio_,
                                        "Key s is legal for query t iff s < (offset + t + 1) / M; without it and --range all keys are")
                             ->check(CLI::Range(std::int64_t{1}, largest_int32))
                             ->type_name("M");
    app.add_option("--query-offset", query_offset_, "The position of query 0 (default 0)")
        ->check(CLI::Range(std::int64_t{0}, largest_int32))
        ->type_name("O")
        ->needs(app.get_option("--causal-ratio"));
    range_.add(app, "--range", "Keys start <= s < end of each query, [S, 2] or [B, S, 2], int32 or int64", "R.npy")
        ->excludes(app.get_option(causal->get_name()));
    add_dtype(app, "queries and keys", "scaled by key row and by query head", dtype_);
    add_order(app, options_.order);
    add_level(app, options_.level);
    add_backend(app, backend_);
    const auto at_least_0 = CLI::Range(std::int64_t{0}, largest_int32);
    app.add_option("--chunk-queries", options_.chunk_queries, "Queries that stay resident while keys stream past (default 0: chosen)")
        ->check(at_least_0)
        ->type_name("N");
    app.add_option("--chunk-keys", options_.chunk_keys, "Keys streamed at a time (default 0: chosen); neither changes a bit of the result")
        ->check(at_least_0)
        ->type_name("N");
    outputs_.add(app);
    app.add_flag("--json", json_, "One JSON object on stdout: shapes, options, level, backend, seconds, TFLOP/s of legal work, peak bytes");
  }

  void check() override {
    for (InputFile* file : {&query_, &key_, &weights_}) file->open({NpyType::float32, NpyType::float16});
    range_.open({NpyType::int32, NpyType::int64});

    const Layout layout{"query", "S, H, D"};
    batched_ = require_layout(*query_, layout);
    require_layout(*key_, {"key", "T, D"}, *query_, layout);
    require_layout(*weights_, {"weights", "S, H"}, *query_, layout);
    dimensions_ = {.batch    = query_.batch(3),
                   .queries  = query_.extent(2),
                   .keys     = key_.extent(1),
                   .heads    = query_.extent(1),
                   .head_dim = query_.extent(0)};
    require_extent(*key_, 0, dimensions_.head_dim, "head dimension", query_.path());
    require_extent(*weights_, 0, dimensions_.heads, "heads", query_.path());
    require_extent(*weights_, 1, dimensions_.queries, "queries", query_.path());
    if (dimensions_.keys > largest_int32) throw std::invalid_argument(key_.path() + ": has more keys than an int32 index can name");
    if (range_.given()) {
      require_layout(*range_, {"range", "S, 2"}, *query_, layout);
      require_extent(*range_, 0, 2, "columns", "a range");
      require_extent(*range_, 1, dimensions_.queries, "queries", query_.path());
    }
    outputs_.check(output_shape());
  }

  int run() override {
    visit_backend(backend_,
                  [&](const auto& exec) { visit_element_type(dtype_, [&]<class T>(std::type_identity<T>) { compute<T>(exec); }); });
    if (json_)
      std::cout << report().dump(2) << '\n';
    else
      print();
    return 0;
  }

 private:
  struct Dimensions {
    std::int64_t batch, queries, keys, heads, head_dim;
  };

  /// The outputs', with a batch dimension iff the query has one.
  Shape output_shape() const {
    return batched_ ? Shape{dimensions_.batch, dimensions_.queries, top_k_} : Shape{dimensions_.queries, top_k_};
  }

  template <Element T, class Exec>
  Inputs<Exec, T> read_inputs(const Exec& exec) const {
    const auto& [batch, queries, keys, heads, head_dim] = dimensions_;
    const Shape     query_extents{batch, queries, heads, head_dim}, key_extents{batch, keys, head_dim};
    Inputs<Exec, T> inputs;
    if constexpr (std::is_same_v<T, float8_e4m3_t>) {
      inputs.query       = make_view<decltype(inputs.query)>("query", query_extents);
      inputs.key         = make_view<decltype(inputs.key)>("key", key_extents);
      inputs.query_scale = make_view<decltype(inputs.query_scale)>("query scale", {batch, queries, heads});
      inputs.key_scale   = make_view<decltype(inputs.key_scale)>("key scale", {batch, keys});
      quantize(exec, read_view<DeviceView<float****, Exec>>(*query_, query_extents), inputs.query, inputs.query_scale);
      quantize(exec, read_view<DeviceView<float***, Exec>>(*key_, key_extents), inputs.key, inputs.key_scale);
    } else {
      inputs.query = read_view<decltype(inputs.query)>(*query_, query_extents);
      inputs.key   = read_view<decltype(inputs.key)>(*key_, key_extents);
    }
    inputs.weights = read_view<decltype(inputs.weights)>(*weights_, {batch, queries, heads});
    if (range_.given()) inputs.range = read_view<decltype(inputs.range)>(*range_, {batch, queries, 2});
    return inputs;
  }

  template <class Exec, class Values, class Quantized, class Scales>
  static void quantize(const Exec& exec, const Values& values, const Quantized& quantized, const Scales& scales) {
    quantize_e4m3(exec, values, quantized, scales);
    exec.fence("tributary: the float values may go");
  }

  template <Element T, class Exec>
  void compute(const Exec& exec) {
    const auto                 inputs = read_inputs<T>(exec);
    const Shape                extents{dimensions_.batch, dimensions_.queries, top_k_};
    const auto                 indices = make_view<DeviceView<std::int32_t***, Exec>>("indices", extents);
    DeviceView<float***, Exec> scores;
    if (outputs_.wants_scores()) scores = make_view<decltype(scores)>("scores", extents);
    {
      const AllocationMeter meter;
      const Kokkos::Timer   timer;
      run_in_slices(exec, inputs, indices, scores);
      measured_.seconds    = timer.seconds();
      measured_.peak_bytes = meter.peak_bytes();
    }
    measured_.operations    = 2.0 * static_cast<double>(dimensions_.heads * dimensions_.head_dim) * legal_pairs();
    const auto host_indices = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, indices);
    const auto host_scores  = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, scores);
    outputs_.write(output_shape(), bytes_of(host_indices), bytes_of(host_scores));
  }

  template <class Exec, Element T>
  void run_in_slices(const Exec& exec, const Inputs<Exec, T>& inputs, const DeviceView<std::int32_t***, Exec>& indices,
                     const DeviceView<float***, Exec>& scores) const {
    const std::int64_t total = dimensions_.queries;
    Progress           progress("indexer-topk", total);
    // positions of later slices must fit the option's type
    const std::int64_t rows  = query_offset_ + total <= largest_int32 ? progress.rows_at_a_time() : std::max<std::int64_t>(total, 1);
    std::int64_t       begin = 0;
    do {
      const Queries slice{begin, std::min(begin + rows, total)};
      const auto    options = options_of_slice(inputs, slice);
      const auto    query   = of_queries(inputs.query, slice);
      const auto    weights = of_queries(inputs.weights, slice);
      if (outputs_.wants_scores())
        indexer_topk(exec, query, inputs.key, weights, of_queries(indices, slice), of_queries(scores, slice), options);
      else
        indexer_topk(exec, query, inputs.key, weights, of_queries(indices, slice), std::nullopt, options);
      exec.fence("tributary: progress");
      begin = slice.second;
      progress.show(begin);
    } while (begin < total);
  }

  template <class Exec, Element T>
  IndexerOptions options_of_slice(const Inputs<Exec, T>& inputs, const Queries& slice) const {
    IndexerOptions options = options_;
    if (causal_ratio_ > 0)
      options.legal_keys = RatioCausal{.ratio        = static_cast<std::int32_t>(causal_ratio_),
                                       .query_offset = static_cast<std::int32_t>(query_offset_ + slice.first)};
    if (range_.given()) options.legal_keys = KeyRange{of_queries(inputs.range, slice)};
    if constexpr (std::is_same_v<T, float8_e4m3_t>) {
      options.query_scale = of_queries(inputs.query_scale, slice);
      options.key_scale   = inputs.key_scale;
    }
    return options;
  }

  /// (query, key) pairs that are scored.
  double legal_pairs() const {
    const auto& [batch, queries, keys, heads, head_dim] = dimensions_;
    if (range_.given()) {
      const auto bound = [&](std::int64_t i) {
        const std::int64_t value =
            range_->type() == NpyType::int64 ? stored_at<std::int64_t>(range_->data(), i) : stored_at<std::int32_t>(range_->data(), i);
        return std::clamp<std::int64_t>(value, 0, dimensions_.keys);
      };
      double pairs = 0;
      for (std::int64_t row = 0; row < batch * queries; ++row)
        pairs += static_cast<double>(std::max<std::int64_t>(bound(2 * row + 1) - bound(2 * row), 0));
      return pairs;
    }
    if (causal_ratio_ == 0) return static_cast<double>(batch) * static_cast<double>(queries) * static_cast<double>(keys);
    double pairs = 0;
    for (std::int64_t t = 0; t < queries; ++t) pairs += static_cast<double>(std::min(keys, (query_offset_ + t + 1) / causal_ratio_));
    return pairs * static_cast<double>(batch);
  }

  nlohmann::ordered_json report() const {
    using Json = nlohmann::ordered_json;
    Json shapes{{"query", query_->shape()}, {"key", key_->shape()}, {"weights", weights_->shape()}};
    if (range_.given()) shapes["range"] = range_->shape();
    shapes["indices"] = output_shape();
    Json options{{"top_k", top_k_}, {"dtype", name_of(dtype_)}, {"order", name_of(options_.order)}};
    options["legal_keys"]    = range_.given() ? "range" : causal_ratio_ > 0 ? "ratio_causal" : "full";
    options["causal_ratio"]  = causal_ratio_ > 0 ? Json(causal_ratio_) : Json(nullptr);
    options["query_offset"]  = query_offset_;
    options["chunk_queries"] = options_.chunk_queries;
    options["chunk_keys"]    = options_.chunk_keys;
    return {{"command", "indexer-topk"},
            {"shapes", shapes},
            {"options", options},
            {"level", name_of(level_taken(options_.level))},
            {"backend", backend_},
            {"seconds", measured_.seconds},
            {"legal_pairs", legal_pairs()},
            {"tflops", measured_.teraflops()},
            {"peak_bytes", measured_.peak_bytes}};
  }

  void print() const {
    std::cout << "query " << to_string(query_->shape()) << ", key " << to_string(key_->shape()) << ", " << name_of(dtype_) << ", top "
              << top_k_ << ", level " << name_of(level_taken(options_.level)) << " on " << backend_ << '\n';
    std::printf("%s, %.3g TFLOP/s of legal work, peak memory %s beyond inputs and outputs\n", readable_seconds(measured_.seconds).c_str(),
                measured_.teraflops(), readable_bytes(static_cast<double>(measured_.peak_bytes)).c_str());
  }

  InputFile      query_, key_, weights_, range_;
  std::string    backend_;
  std::int64_t   top_k_ = 0, causal_ratio_ = 0, query_offset_ = 0;
  ElementType    dtype_ = ElementType::float32;
  IndexerOptions options_;
  TopkOutputs    outputs_;
  bool           json_ = false;

  bool       batched_ = false;
  Dimensions dimensions_{};
  Measured   measured_;
};

}  // namespace

std::unique_ptr<Command> make_indexer_topk(CLI::App& app) { return std::make_unique<IndexerTopkCommand>(app); }

}  // namespace Tributary::Program
