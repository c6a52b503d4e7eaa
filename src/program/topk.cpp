#include <Kokkos_Core.hpp>
#include <Tributary_Topk.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
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

template <class Data, class Exec>
using DeviceView = Kokkos::View<Data, Kokkos::LayoutRight, Kokkos::Device<Exec, typename Exec::memory_space>>;

class TopkCommand : public Command {
 public:
  explicit TopkCommand(CLI::App& app) {
    values_.add(app, "--values", "Values [rows, n] or [B, rows, n], float32 or float16", "V.npy")->required();
    add_top_k(app, top_k_);
    app.get_option("--top-k")->required();
    add_order(app, options_.order);
    add_level(app, options_.level);
    add_backend(app, backend_);
    outputs_.add(app);
    app.add_flag("--json", json_, "One JSON object on stdout: shapes, options, level, backend, seconds, GB/s read, peak bytes");
  }

  void check() override {
    values_.open({NpyType::float32, NpyType::float16});
    require_layout(*values_, {"values", "rows, n"});
    if (values_.extent(0) > std::numeric_limits<std::int32_t>::max())
      throw std::invalid_argument(values_.path() + ": has more columns than an int32 index can name");
    outputs_.check(output_shape());
  }

  int run() override {
    visit_backend(backend_, [&](const auto& exec) {
      if (values_->type() == NpyType::float16)
        compute<half_t>(exec);
      else
        compute<float>(exec);
    });
    if (json_)
      std::cout << report().dump(2) << '\n';
    else
      print();
    return 0;
  }

 private:
  /// The outputs', with a batch dimension iff the values have one.
  Shape output_shape() const {
    Shape shape  = values_->shape();
    shape.back() = top_k_;
    return shape;
  }

  /// A batch is so many rows more: rows are chosen from one by one.
  static Shape as_rows(const Shape& shape) { return {elements({shape.begin(), shape.end() - 1}), shape.back()}; }

  template <class T, class Exec>
  void compute(const Exec& exec) {
    const auto                values  = read_view<DeviceView<T**, Exec>>(*values_, as_rows(values_->shape()));
    const Shape               extents = as_rows(output_shape());
    const auto                indices = make_view<DeviceView<std::int32_t**, Exec>>("indices", extents);
    DeviceView<float**, Exec> scores;
    if (outputs_.wants_scores()) scores = make_view<decltype(scores)>("scores", extents);
    {
      const AllocationMeter meter;
      const Kokkos::Timer   timer;
      run_in_slices(exec, values, indices, scores);
      measured_.seconds    = timer.seconds();
      measured_.peak_bytes = meter.peak_bytes();
    }
    const auto host_indices = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, indices);
    const auto host_scores  = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, scores);
    outputs_.write(output_shape(), bytes_of(host_indices), bytes_of(host_scores));
  }

  template <class Exec, class Values, class Indices, class Scores>
  void run_in_slices(const Exec& exec, const Values& values, const Indices& indices, const Scores& scores) const {
    const auto   total = static_cast<std::int64_t>(values.extent(0));
    Progress     progress("topk", total);
    std::int64_t begin = 0;
    do {
      const std::pair<std::int64_t, std::int64_t> rows{begin, std::min(begin + progress.rows_at_a_time(), total)};
      const auto                                  of_rows = [&](const auto& view) { return Kokkos::subview(view, rows, Kokkos::ALL); };
      if (outputs_.wants_scores())
        Tributary::topk(exec, of_rows(values), of_rows(indices), of_rows(scores), options_);
      else
        Tributary::topk(exec, of_rows(values), of_rows(indices), std::nullopt, options_);
      exec.fence("tributary: progress");
      begin = rows.second;
      progress.show(begin);
    } while (begin < total);
  }

  double gigabytes_per_second() const {
    const double bytes = static_cast<double>(elements(values_->shape())) * static_cast<double>(size_of(values_->type()));
    return measured_.seconds > 0 ? bytes / measured_.seconds * 1e-9 : 0;
  }

  nlohmann::ordered_json report() const {
    using Json = nlohmann::ordered_json;
    return {{"command", "topk"},
            {"shapes", Json{{"values", values_->shape()}, {"indices", output_shape()}}},
            {"options", Json{{"top_k", top_k_}, {"dtype", name_of(values_->type())}, {"order", name_of(options_.order)}}},
            {"level", name_of(level_taken(options_.level))},
            {"backend", backend_},
            {"seconds", measured_.seconds},
            {"gigabytes_per_second", gigabytes_per_second()},
            {"peak_bytes", measured_.peak_bytes}};
  }

  void print() const {
    std::cout << "values " << to_string(values_->shape()) << ", " << name_of(values_->type()) << ", top " << top_k_ << ", level "
              << name_of(level_taken(options_.level)) << " on " << backend_ << '\n';
    std::printf("%s, %.3g GB/s read, peak memory %s beyond inputs and outputs\n", readable_seconds(measured_.seconds).c_str(),
                gigabytes_per_second(), readable_bytes(static_cast<double>(measured_.peak_bytes)).c_str());
  }

  InputFile    values_;
  std::string  backend_;
  std::int64_t top_k_ = 0;
  TopkOptions  options_;
  TopkOutputs  outputs_;
  bool         json_ = false;
  Measured     measured_;
};

}  // namespace

std::unique_ptr<Command> make_topk(CLI::App& app) { return std::make_unique<TopkCommand>(app); }

}  // namespace Tributary::Program
