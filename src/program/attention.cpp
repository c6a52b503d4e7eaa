#include <Kokkos_Core.hpp>
#include <Tributary_Attention.hpp>
#include <Tributary_Quantize.hpp>
#include <array>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "allocation_meter.hpp"
#include "arrays.hpp"
#include "attention_inputs.hpp"
#include "backend.hpp"
#include "command.hpp"
#include "input_file.hpp"
#include "options.hpp"
#include "output_files.hpp"

namespace Tributary::Program {

namespace {

template <class Data, class Exec>
using DeviceView = Kokkos::View<Data, Kokkos::LayoutRight, Kokkos::Device<Exec, typename Exec::memory_space>>;

/// The extents of a file's View, which has ones for the dimensions that the file leaves out.
template <class View>
Shape extents_of(const InputFile& file) {
  Shape extents = file->shape();
  extents.insert(extents.begin(), View::rank() - extents.size(), 1);
  return extents;
}

/// Rows [B, S, H, D] of a file, rounded to T; of e4m3 with scales, which `option` then refers to.
template <Element T, class Exec>
struct Rows {
  DeviceView<T****, Exec>    values;
  DeviceView<float***, Exec> scales;

  template <class Option>
  Rows(const Exec& exec, const InputFile& file, const Shape& extents, Option& option) {
    if constexpr (std::is_same_v<T, float8_e4m3_t>) {
      values = make_view<decltype(values)>("quantized", extents);
      scales =
          make_view<decltype(scales)>("scales", {extents[0], extents[2], (extents[1] + attention_scale_rows - 1) / attention_scale_rows});
      const auto floats = read_view<DeviceView<float****, Exec>>(*file, extents);
      quantize_e4m3_heads(exec, floats, values, scales);
      exec.fence("tributary: the float values may go");
      option = scales;
    } else {
      values = read_view<decltype(values)>(*file, extents);
    }
  }
};

/// The arrays that options refer to, in the backend's memory.
template <class Exec>
struct OptionArrays {
  DeviceView<std::uint8_t****, Exec> keep;
  DeviceView<float****, Exec>        additive_mask;
  DeviceView<std::uint8_t**, Exec>   key_keep;
  DeviceView<float**, Exec>          alibi, relative_bias;
  DeviceView<float*, Exec>           sink;
  DeviceView<std::int32_t**, Exec>   query_positions, key_positions;
  DeviceView<std::int32_t*, Exec>    cu_seqlens_q, cu_seqlens_k;

  /// Reads those that are given and lets `options` refer to them.
  OptionArrays(const AttentionInputs& in, AttentionOptions& options) {
    read(in.keep_mask, keep, options.keep);
    read(in.additive_mask, additive_mask, options.additive_mask);
    read(in.key_keep, key_keep, options.key_keep);
    read(in.alibi, alibi, options.alibi_slopes);
    read(in.relative_bias, relative_bias, options.relative_bias.table);
    read(in.sink, sink, options.sink);
    read(in.rope_positions, query_positions, options.rotary.query_positions);
    read(in.rope_positions, key_positions, options.rotary.key_positions);
    read(in.rope_query_positions, query_positions, options.rotary.query_positions);
    read(in.rope_key_positions, key_positions, options.rotary.key_positions);
    read(in.cu_seqlens_q, cu_seqlens_q, options.sequences.cu_seqlens_q);
    read(in.cu_seqlens_k, cu_seqlens_k, options.sequences.cu_seqlens_k);
  }

 private:
  template <class View, class Option>
  static void read(const InputFile& file, View& view, Option& option) {
    if (!file.given()) return;
    view   = read_view<View>(*file, extents_of<View>(file));
    option = view;
  }
};

class AttentionCommand : public Command {
 public:
  explicit AttentionCommand(CLI::App& app) {
    inputs_.add(app);
    add_backend(app, backend_);
    add_output(app, output_, "--output",
               "Output [S, H, E] or [B, S, H, E], float32 like all that is written; 0 in a row without a legal key")
        ->required();
    add_output(app, lse_, "--lse", "Output: log-sum-exp [H, S] or [B, H, S], without the sink");
    auto* const grad_output =
        inputs_.grad_output.add(app, "--grad-output", "The output's gradient, its shape: gradients are computed as well", "DO.npy");
    for (auto& [gradient, name] : {std::pair{&grad_query_, "query"}, {&grad_key_, "key"}, {&grad_value_, "value"}})
      add_output(app, *gradient, std::string("--grad-") + name, "Output: gradient of " + std::string(name))->needs(grad_output);
    for (auto& [gradient, input] : further_gradients())
      add_output(app, *gradient, "--grad-" + input->option()->get_name().substr(2),
                 "Output: gradient of " + input->option()->get_name() + ", its shape")
          ->needs(grad_output)
          ->needs(input->option());
    app.add_flag("--json", json_, "One JSON object on stdout: shapes, options, level, backend, seconds, TFLOP/s of legal work, peak bytes");
  }

  void check() override {
    inputs_.check();
    require_storable(inputs_.out_shape());
    require_storable(inputs_.lse_shape());
    std::vector<OutputFiles::Named> files;
    const auto                      add_given = [&](const auto& outputs) {
      for (const Output* output : outputs)
        if (output->given()) files.push_back({output->option->get_name(), output->path});
    };
    const std::array gradients{&grad_query_, &grad_key_,           &grad_value_, &grad_additive_mask_,
                               &grad_alibi_, &grad_relative_bias_, &grad_sink_};
    add_given(gradients);
    if (inputs_.grad_output.given() && files.empty()) {
      std::string names;
      for (const Output* gradient : gradients) names += (names.empty() ? "" : ", ") + gradient->option->get_name();
      throw std::invalid_argument("--grad-output is given, but none of " + names);
    }
    add_given(std::array{&output_, &lse_});
    OutputFiles::require_distinct_and_writable(files);
  }

  int run() override {
    visit_backend(backend_,
                  [&](const auto& exec) { visit_element_type(inputs_.dtype, [&]<class T>(std::type_identity<T>) { compute<T>(exec); }); });
    if (json_)
      std::cout << report().dump(2) << '\n';
    else
      print();
    return 0;
  }

 private:
  struct Output {
    CLI::Option* option = nullptr;
    std::string  path;

    bool given() const { return option->count() > 0; }
  };

  /// Beside those of query, key and value, and what they are gradients of.
  std::array<std::pair<Output*, InputFile*>, 4> further_gradients() {
    return {{{&grad_additive_mask_, &inputs_.additive_mask},
             {&grad_alibi_, &inputs_.alibi},
             {&grad_relative_bias_, &inputs_.relative_bias},
             {&grad_sink_, &inputs_.sink}}};
  }

  static CLI::Option* add_output(CLI::App& app, Output& output, const std::string& name, const std::string& description) {
    output.option = app.add_option(name, output.path, description)->type_name("OUT.npy");
    return output.option;
  }

  template <Element T, class Exec>
  void compute(const Exec& exec) {
    const AttentionInputs& in = inputs_;
    const Shape query_extents{in.batch, in.queries, in.heads, in.head_dim}, out_extents{in.batch, in.queries, in.heads, in.value_dim};
    const Shape key_extents{in.batch, in.keys, in.key_heads, in.head_dim}, value_extents{in.batch, in.keys, in.key_heads, in.value_dim};
    AttentionOptions         options = in.options;
    const Rows<T, Exec>      query(exec, in.query, query_extents, options.query_scale);
    const Rows<T, Exec>      key(exec, in.key, key_extents, options.key_scale);
    const Rows<T, Exec>      value(exec, in.value, value_extents, options.value_scale);
    const OptionArrays<Exec> arrays(in, options);
    const auto               out = make_view<DeviceView<float****, Exec>>("out", out_extents);
    const auto               lse = make_view<DeviceView<float***, Exec>>("lse", {in.batch, in.heads, in.queries});
    OutputFiles              files;
    // Multiply-adds a legal pair.  Forward: q k, p v; backward: q k, dO v and the gradients of v, k and q.
    forward_ = measured(exec, in.head_dim + in.value_dim,
                        [&] { attention_forward(exec, query.values, key.values, value.values, out, lse, options); });
    write(files, output_, in.out_shape(), out);
    write(files, lse_, in.lse_shape(), lse);
    if constexpr (!std::is_same_v<T, float8_e4m3_t>)
      if (in.grad_output.given()) differentiate(exec, query.values, key.values, value.values, out, lse, options, files);
    files.commit();
  }

  template <class Exec, Element T>
  void differentiate(const Exec& exec, const DeviceView<T****, Exec>& query, const DeviceView<T****, Exec>& key,
                     const DeviceView<T****, Exec>& value, const DeviceView<float****, Exec>& out, const DeviceView<float***, Exec>& lse,
                     const AttentionOptions& options, OutputFiles& files) {
    const AttentionInputs& in     = inputs_;
    const auto         grad_out   = read_view<DeviceView<float****, Exec>>(*in.grad_output, {in.batch, in.queries, in.heads, in.value_dim});
    const auto         grad_query = DeviceView<T****, Exec>("grad_query", query.layout());
    const auto         grad_key   = DeviceView<T****, Exec>("grad_key", key.layout());
    const auto         grad_value = DeviceView<T****, Exec>("grad_value", value.layout());
    AttentionGradients gradients;
    const auto grad_additive_mask = wanted<DeviceView<float****, Exec>>(grad_additive_mask_, in.additive_mask, gradients.additive_mask);
    const auto grad_alibi         = wanted<DeviceView<float**, Exec>>(grad_alibi_, in.alibi, gradients.alibi_slopes);
    const auto grad_relative_bias = wanted<DeviceView<float**, Exec>>(grad_relative_bias_, in.relative_bias, gradients.relative_bias);
    const auto grad_sink          = wanted<DeviceView<float*, Exec>>(grad_sink_, in.sink, gradients.sink);
    backward_                     = measured(exec, 3 * in.head_dim + 2 * in.value_dim, [&] {
      attention_backward(exec, query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options, gradients);
    });
    write(files, grad_query_, in.query, grad_query);
    write(files, grad_key_, in.key, grad_key);
    write(files, grad_value_, in.value, grad_value);
    write(files, grad_additive_mask_, in.additive_mask, grad_additive_mask);
    write(files, grad_alibi_, in.alibi, grad_alibi);
    write(files, grad_relative_bias_, in.relative_bias, grad_relative_bias);
    write(files, grad_sink_, in.sink, grad_sink);
  }

  template <class Exec, class Call>
  Measured measured(const Exec& exec, std::int64_t products_a_pair, const Call& call) const {
    Measured              result;
    const AllocationMeter meter;
    const Kokkos::Timer   timer;
    call();
    exec.fence("tributary: done");
    result.seconds    = timer.seconds();
    result.operations = 2.0 * static_cast<double>(products_a_pair * inputs_.heads) * inputs_.legal_pairs().value_or(0);
    result.peak_bytes = meter.peak_bytes();
    return result;
  }

  /// A View for a gradient that is to be written, which `gradient` then refers to.
  template <class View, class Gradient>
  static View wanted(const Output& output, const InputFile& input, Gradient& gradient) {
    if (!output.given()) return {};
    auto view = make_view<View>(output.option->get_name(), extents_of<View>(input));
    gradient  = view;
    return view;
  }

  /// A gradient, in the shape of its input.
  template <class View>
  static void write(OutputFiles& files, const Output& output, const InputFile& input, const View& view) {
    if (output.given()) write(files, output, input->shape(), view);
  }

  template <class View>
  static void write(OutputFiles& files, const Output& output, const Shape& shape, const View& view) {
    if (!output.given()) return;
    const auto floats = host_floats(view);
    files.write(output.path, {npy_header(NpyType::float32, shape), bytes_of(floats)});
  }

  nlohmann::ordered_json report() const {
    using Json       = nlohmann::ordered_json;
    const auto pairs = inputs_.legal_pairs();
    const auto of    = [&](const Measured& m) {
      return Json{{"seconds", m.seconds}, {"tflops", pairs ? Json(m.teraflops()) : Json(nullptr)}, {"peak_bytes", m.peak_bytes}};
    };
    return {{"command", "attention"},
            {"shapes", inputs_.shapes()},
            {"options", inputs_.options_report()},
            {"level", name_of(level_taken(inputs_.options.level))},
            {"backend", backend_},
            {"legal_pairs", pairs ? Json(*pairs) : Json(nullptr)},
            {"forward", of(forward_)},
            {"backward", backward_ ? of(*backward_) : Json(nullptr)}};
  }

  void print() const {
    std::cout << "query " << to_string(inputs_.query->shape()) << ", key " << to_string(inputs_.key->shape()) << ", value "
              << to_string(inputs_.value->shape()) << ", " << name_of(inputs_.dtype) << ", level "
              << name_of(level_taken(inputs_.options.level)) << " on " << backend_ << '\n';
    print("forward ", forward_);
    if (backward_) print("backward", *backward_);
  }

  void print(const char* direction, const Measured& m) const {
    std::printf("%s  %s, ", direction, readable_seconds(m.seconds).c_str());
    if (inputs_.legal_pairs()) std::printf("%.3g TFLOP/s of legal work, ", m.teraflops());
    std::printf("peak memory %s beyond inputs and outputs\n", readable_bytes(static_cast<double>(m.peak_bytes)).c_str());
  }

  AttentionInputs         inputs_;
  Output                  output_, lse_, grad_query_, grad_key_, grad_value_;
  Output                  grad_additive_mask_, grad_alibi_, grad_relative_bias_, grad_sink_;
  std::string             backend_;
  bool                    json_ = false;
  Measured                forward_;
  std::optional<Measured> backward_;
};

}  // namespace

std::unique_ptr<Command> make_attention(CLI::App& app) { return std::make_unique<AttentionCommand>(app); }

}  // namespace Tributary::Program
