#include <Kokkos_Core.hpp>
#include <Tributary_Config.hpp>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backend.hpp"
#include "command.hpp"

namespace Tributary::Program {

namespace {

using Json = nlohmann::ordered_json;

std::string kokkos_version() {
  return std::to_string(KOKKOS_VERSION / 10000) + "." + std::to_string(KOKKOS_VERSION / 100 % 100) + "." +
         std::to_string(KOKKOS_VERSION % 100);
}

/// The GPU behind the default instance, or null.
Json device() {
#ifdef KOKKOS_ENABLE_CUDA
  const auto& properties = Kokkos::Cuda().cuda_device_prop();
  return {{"name", properties.name},
          {"compute_capability", std::to_string(properties.major) + "." + std::to_string(properties.minor)},
          {"memory_bytes", properties.totalGlobalMem},
          {"multiprocessors", properties.multiProcessorCount}};
#else
  return nullptr;
#endif
}

std::vector<std::string> levels() {
  std::vector<std::string> names = {"reference", "portable"};
#if defined(TRIBUTARY_ENABLE_SM90)
  names.emplace_back("hopper");
#endif
  return names;
}

class Info : public Command {
 public:
  explicit Info(CLI::App& app) { app.add_flag("--json", json_, "One JSON object on stdout"); }

  int run() override {
    Json spaces = Json::array();
    std::apply(
        [&](const auto&... backend) {
          (spaces.push_back({{"backend", backend.name},
                             {"name", std::remove_cvref_t<decltype(backend)>::execution_space::name()},
                             {"concurrency", typename std::remove_cvref_t<decltype(backend)>::execution_space{}.concurrency()}}),
           ...);
        },
        backends);
    Json info{{"version", TRIBUTARY_VERSION},
              {"kokkos_version", kokkos_version()},
              {"execution_spaces", spaces},
              {"default_backend", default_backend()},
              {"device", device()}};
    info["levels"] = levels();
    if (json_)
      std::cout << info.dump(2) << '\n';
    else
      print(info);
    return 0;
  }

 private:
  static void print(const Json& info) {
    std::cout << "tributary " << info["version"].get<std::string>() << ", Kokkos " << info["kokkos_version"].get<std::string>() << '\n';
    for (const auto& space : info["execution_spaces"])
      std::cout << "backend " << space["backend"].get<std::string>() << ": " << space["name"].get<std::string>() << ", concurrency "
                << space["concurrency"] << (space["backend"] == info["default_backend"] ? " (default)" : "") << '\n';
    const auto& gpu = info["device"];
    if (gpu.is_object())
      std::cout << "device: " << gpu["name"].get<std::string>() << ", compute capability " << gpu["compute_capability"].get<std::string>()
                << '\n';
    else
      std::cout << "device: none, this build is for the CPU\n";
    std::cout << "levels:";
    for (const auto& level : info["levels"]) std::cout << ' ' << level.get<std::string>();
    std::cout << '\n';
  }

  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> make_info(CLI::App& app) { return std::make_unique<Info>(app); }

}  // namespace Tributary::Program
