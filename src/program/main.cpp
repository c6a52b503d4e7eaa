#include <CLI/CLI.hpp>
#include <Kokkos_Core.hpp>
#include <Tributary_Config.hpp>
#include <algorithm>
#include <exception>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "command.hpp"

// Exit status: 0 done, 1 a check failed, 2 bad usage or files (with one line on stderr).

namespace {

using Tributary::Program::Command;

constexpr int usage_error = 2;

int fail(std::string_view where, std::string message) {
  // one line, whatever a library wrote
  while (!message.empty() && message.back() == '\n') message.pop_back();
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::cerr << where << ": " << message << '\n';
  return usage_error;
}

bool is_kokkos_option(std::string_view argument) { return argument.starts_with("--kokkos-"); }

/// The arguments that are Kokkos' own, taken out of `arguments`.
std::vector<char*> take_kokkos_options(std::vector<char*>& arguments) {
  std::vector<char*> kokkos;
  const auto         first = std::stable_partition(arguments.begin(), arguments.end(), [](const char* a) { return !is_kokkos_option(a); });
  kokkos.assign(first, arguments.end());
  arguments.erase(first, arguments.end());
  return kokkos;
}

int run_with_kokkos(Command& command, char* program, const std::vector<char*>& kokkos_options) {
  // Advice about thread binding is Kokkos' only word on stderr otherwise; given options come later and win.
  std::string        quiet = "--kokkos-disable-warnings";
  std::vector<char*> arguments{program, quiet.data()};
  arguments.insert(arguments.end(), kokkos_options.begin(), kokkos_options.end());
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  const Kokkos::ScopeGuard kokkos(count, arguments.data());
  return command.run();
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  const auto         kokkos_options = take_kokkos_options(arguments);

  CLI::App app("Attention building blocks for very long contexts, on Kokkos.  Arrays come and go as .npy files.", "tributary");
  app.set_version_flag("--version", std::string("tributary " TRIBUTARY_VERSION));
  app.footer("Options --kokkos-* are passed to Kokkos, e.g. --kokkos-num-threads=4 or --kokkos-device-id=1.");
  app.require_subcommand(0, 1);
  std::string where = "tributary";
  try {
    std::vector<std::pair<CLI::App*, std::unique_ptr<Command>>> commands;
    const auto add = [&](const std::string& name, const std::string& description, auto make) {
      CLI::App* parser = app.add_subcommand(name, description);
      commands.emplace_back(parser, make(*parser));
    };
    using namespace Tributary::Program;
    add("info", "Versions, execution spaces, devices and levels of this build", make_info);
    add("attention", "Dense attention with an online softmax, its log-sum-exp and its gradients", make_attention);
    add("indexer-topk", "For every query the keys with the highest lightning-indexer scores", make_indexer_topk);
    add("topk", "The largest entries of every row", make_topk);
    add("demo", "The indexer on activations of a real text, checked, with the chosen words and a picture", make_demo);
    app.parse(static_cast<int>(arguments.size()), arguments.data());
    for (const auto& [parser, command] : commands)
      if (parser->parsed()) {
        where += " " + parser->get_name();
        command->check();
        return run_with_kokkos(*command, argv[0], kokkos_options);
      }
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) return app.exit(error);  // --help, --version
    for (const auto* parser : app.get_subcommands()) where += " " + parser->get_name();
    return fail(where, error.what());
  } catch (const std::exception& error) {
    return fail(where, error.what());
  }
  return fail(where, "a subcommand is required, see tributary --help");
}
