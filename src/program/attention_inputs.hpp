#pragma once
#include <CLI/CLI.hpp>
#include <Tributary_Attention.hpp>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "input_file.hpp"

// What `tributary attention` reads: the files, checked against one another, and the options that are numbers.

namespace Tributary::Program {

struct AttentionInputs {
  InputFile query, key, value, grad_output;
  InputFile keep_mask, key_keep, additive_mask, alibi, sink, relative_bias;
  InputFile rope_positions, rope_query_positions, rope_key_positions;
  InputFile cu_seqlens_q, cu_seqlens_k;

  AttentionOptions options;  ///< scalars only; the files' arrays are added where they are read
  ElementType      dtype = ElementType::float32;

  // After check().
  bool         batched = false;  ///< query, key and value have a batch dimension
  std::int64_t batch = 1, queries = 0, keys = 0, heads = 0, key_heads = 0, head_dim = 0, value_dim = 0;

  void add(CLI::App&);
  /// Throws where a file or a number is wrong, alone or beside the others.
  void check();

  Shape out_shape() const;
  Shape lse_shape() const;
  /// (query, key) pairs inside the causal order and the window, each counted for one head; nothing where a mask hides more.
  std::optional<double>  legal_pairs() const;
  nlohmann::ordered_json shapes() const;
  nlohmann::ordered_json options_report() const;

 private:
  void         check_shapes();
  void         check_offsets() const;
  void         check_sequences();
  void         check_masks();
  void         check_biases() const;
  void         check_rotary();
  std::int64_t sequences() const;
};

}  // namespace Tributary::Program
