# Versions, places and hashes of everything that can be fetched.  Used by the project and by InstallDependencies.cmake.
#
# Kokkos 4.7.04 is the newest of the 4.x line; the source package on PyPI carries 4.7.00, which lacks CUDA 13 support, hence
# the patch.  Without ETI, Kokkos Kernels 4.5.01 builds on both.
include_guard(GLOBAL)
include("${CMAKE_CURRENT_LIST_DIR}/ThirdPartySource.cmake")
set(Tributary_PATCH_DIR "${CMAKE_CURRENT_LIST_DIR}/patches")

function(tributary_kokkos_source result)
  third_party_source(
    kokkos
    PROVIDER "${Tributary_DEPENDENCY_PROVIDER}"
    CACHE "${Tributary_DEPENDENCY_CACHE}"
    URL https://github.com/kokkos/kokkos/releases/download/4.7.04/kokkos-4.7.04.tar.gz
    URL_SHA256 4213b248c39e112299fa94ee08817e51126fc02996ed6e2ab56aec4cdb80ee1f
    URL_SUBDIR kokkos-4.7.04
    PYPI pygenten==0.1.5
    PYPI_SHA256 e620f05c742905e2db705d875f1cac92ef0ed453f9e6734e9beda26cc0f9cce7
    PYPI_BACKEND scikit_build_core.build
    PYPI_SUBDIR pygenten-0.1.5/tpls/kokkos
    PYPI_PATCHES "${Tributary_PATCH_DIR}/kokkos-4.7.0-cuda13.patch"
    RESULT source)
  set(${result} "${source}" PARENT_SCOPE)
endfunction()

function(tributary_kokkos_kernels_source result)
  third_party_source(
    kokkos-kernels
    PROVIDER "${Tributary_DEPENDENCY_PROVIDER}"
    CACHE "${Tributary_DEPENDENCY_CACHE}"
    URL https://github.com/kokkos/kokkos-kernels/releases/download/4.5.01/kokkos-kernels-4.5.01.tar.gz
    URL_SHA256 c111a6561f23a85af9850d1df1e9015f37a586f1da0be4b6fb1e98001d75e074
    URL_SUBDIR kokkos-kernels-4.5.01
    PYPI pycompadre==1.7.6
    PYPI_SHA256 c766ec4d445ce076069be4b8c51a23ffac4ee79ea949ca86446bfd8c299b154c
    PYPI_BACKEND setuptools.build_meta
    PYPI_SUBDIR pycompadre-1.7.6/kokkos-kernels
    RESULT source)
  set(${result} "${source}" PARENT_SCOPE)
endfunction()

# The rest comes from its release archive only; the result is empty where that cannot be reached.
function(tributary_archive_source name url sha256 subdir result)
  third_party_source(
    ${name}
    PROVIDER github
    CACHE "${Tributary_DEPENDENCY_CACHE}"
    URL ${url}
    URL_SHA256 ${sha256}
    URL_SUBDIR ${subdir}
    OPTIONAL
    RESULT source)
  set(${result} "${source}" PARENT_SCOPE)
endfunction()

function(tributary_googletest_source result)
  tributary_archive_source(
    googletest https://github.com/google/googletest/releases/download/v1.15.2/googletest-1.15.2.tar.gz
    7b42b4d6ed48810c5362c265a17faebe90dc2373c885e5216439d37927f02926 googletest-1.15.2 source)
  set(${result} "${source}" PARENT_SCOPE)
endfunction()

function(tributary_benchmark_source result)
  tributary_archive_source(
    benchmark https://github.com/google/benchmark/archive/refs/tags/v1.8.3.tar.gz
    6bc180a57d23d4d9515519f92b0c83d61b05b5bab188961f36ac7b06b0d9e9ce benchmark-1.8.3 source)
  set(${result} "${source}" PARENT_SCOPE)
endfunction()

function(tributary_cli11_source result)
  tributary_archive_source(
    cli11 https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.4.2.tar.gz
    f2d893a65c3b1324c50d4e682c0cdc021dd0477ae2c048544f39eed6654b699a CLI11-2.4.2 source)
  set(${result} "${source}" PARENT_SCOPE)
endfunction()

function(tributary_json_source result)
  tributary_archive_source(
    nlohmann-json https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
    d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d json source)
  set(${result} "${source}" PARENT_SCOPE)
endfunction()
