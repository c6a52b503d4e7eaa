#pragma once
#include <CLI/CLI.hpp>
#include <memory>

namespace Tributary::Program {

/// A subcommand: its options are bound to the parser by the constructor.
class Command {
 public:
  virtual ~Command() = default;
  /// Everything that can be refused before Kokkos starts: options, input files, places for the outputs.
  virtual void check() {}
  /// With Kokkos running.  Returns the exit status.
  virtual int run() = 0;
};

std::unique_ptr<Command> make_info(CLI::App&);
std::unique_ptr<Command> make_attention(CLI::App&);
std::unique_ptr<Command> make_indexer_topk(CLI::App&);
std::unique_ptr<Command> make_topk(CLI::App&);
std::unique_ptr<Command> make_demo(CLI::App&);

}  // namespace Tributary::Program
