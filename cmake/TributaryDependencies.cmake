# What Tributary is built on: an installed copy where find_package sees one, else sources built as part of this project.
# Kokkos is all that the library itself needs; the rest belongs to tests, benchmarks and the program.
include_guard(GLOBAL)
include("${CMAKE_CURRENT_LIST_DIR}/DependencySources.cmake")
include(CheckFunctionExists)

set(Tributary_DEPENDENCY_PROVIDER
    "auto"
    CACHE STRING "Where missing dependencies come from: auto (release archives, then pip), github, pypi, none")
set_property(CACHE Tributary_DEPENDENCY_PROVIDER PROPERTY STRINGS auto github pypi none)
set(Tributary_DEPENDENCY_CACHE
    "${PROJECT_SOURCE_DIR}/.deps"
    CACHE PATH "Downloaded and unpacked third-party sources, shared by all builds")
option(Tributary_USE_INSTALLED_KOKKOS "Use an installed Kokkos if find_package finds one" ON)

set(Tributary_KOKKOS_VERSIONS 4.7...<6)

# Provides Kokkos::kokkos.  Kokkos joins our own install when it is built here, so it is not EXCLUDE_FROM_ALL.
macro(tributary_provide_kokkos)
  if(TARGET Kokkos::kokkos)
    message(STATUS "Tributary: uses the enclosing project's Kokkos")
  else()
    # The first configure decides and the decision stays: Tributary's own install holds the Kokkos that was built here,
    # and must not turn up later as "an installed Kokkos".
    if(Tributary_USE_INSTALLED_KOKKOS AND NOT Tributary_BUILDS_KOKKOS)
      find_package(Kokkos ${Tributary_KOKKOS_VERSIONS} CONFIG QUIET NO_CMAKE_INSTALL_PREFIX)
    endif()
    if(Kokkos_FOUND)
      message(STATUS "Tributary: Kokkos ${Kokkos_VERSION} installed in ${Kokkos_DIR}")
    else()
      tributary_require_provider("Kokkos ${Tributary_KOKKOS_VERSIONS}" "set Kokkos_ROOT")
      set(Tributary_BUILDS_KOKKOS ON CACHE INTERNAL "Kokkos is built as part of Tributary")
      # Defaults only; presets and -D win.
      set(Kokkos_ENABLE_SERIAL ON CACHE BOOL "")
      set(Kokkos_ENABLE_DEPRECATED_CODE_4 OFF CACHE BOOL "")
      if(Kokkos_ENABLE_CUDA)
        # nvcc 13.0 and GCC 12 lay Kokkos 4.7's new View (on mdspan) out differently, so that one captured in a kernel arrives garbled.
        set(Kokkos_ENABLE_IMPL_VIEW_LEGACY ON CACHE BOOL "")
        set(Kokkos_ENABLE_IMPL_MDSPAN OFF CACHE BOOL "")
      endif()
      tributary_kokkos_source(_tributary_kokkos)
      add_subdirectory("${_tributary_kokkos}" "${CMAKE_BINARY_DIR}/_deps/kokkos" SYSTEM)
      get_directory_property(Kokkos_VERSION DIRECTORY "${_tributary_kokkos}" DEFINITION Kokkos_VERSION)
    endif()
  endif()
endmacro()

# Kokkos::kokkoskernels, for benchmarks that need a GEMM to compare with.  Without ETI it builds in seconds and the cost
# moves into the few sources that call it.
macro(tributary_provide_kokkos_kernels)
  if(NOT TARGET Kokkos::kokkoskernels)
    if(NOT Tributary_BUILDS_KOKKOS)
      find_package(KokkosKernels CONFIG QUIET NO_CMAKE_INSTALL_PREFIX)
    endif()
    if(NOT KokkosKernels_FOUND)
      tributary_require_provider("Kokkos Kernels" "set KokkosKernels_ROOT, or Tributary_ENABLE_BENCHMARKS=OFF")
      set(KokkosKernels_ENABLE_ALL_COMPONENTS OFF CACHE BOOL "")
      set(KokkosKernels_ENABLE_COMPONENT_BLAS ON CACHE BOOL "")
      set(KokkosKernels_ADD_DEFAULT_ETI OFF CACHE BOOL "")
      set(KokkosKernels_ENABLE_TPL_LAPACK OFF CACHE BOOL "")
      set(KokkosKernels_ENABLE_TPL_CUSPARSE OFF CACHE BOOL "")
      set(KokkosKernels_ENABLE_TPL_CUSOLVER OFF CACHE BOOL "")
      tributary_find_blas(_tributary_blas)
      set(KokkosKernels_ENABLE_TPL_BLAS ${_tributary_blas} CACHE BOOL "")
      # Every BLAS that find_package finds on our platforms; without it Kokkos Kernels asks for a Fortran compiler.
      set(F77_BLAS_MANGLE "(name,NAME) name ## _" CACHE STRING "")
      tributary_kokkos_kernels_source(_tributary_kokkos_kernels)
      add_subdirectory("${_tributary_kokkos_kernels}" "${CMAKE_BINARY_DIR}/_deps/kokkos-kernels" EXCLUDE_FROM_ALL SYSTEM)
    endif()
  endif()
endmacro()

# Whether a BLAS is here that Kokkos Kernels can link: it calls crot_, which the reference BLAS (as slow as plain loops) leaves
# to LAPACK.  A function, so that BLAS_LIBRARIES does not reach Kokkos Kernels, which takes it for a list of names to look for.
function(tributary_find_blas found)
  find_package(BLAS QUIET)
  set(CMAKE_REQUIRED_LIBRARIES ${BLAS_LIBRARIES})
  check_function_exists(crot_ Tributary_BLAS_HAS_CROT)
  set(${found} ${Tributary_BLAS_HAS_CROT} PARENT_SCOPE)
endfunction()

# Provides <target> from the package <package>; else from its release archive, built with the cache settings in OPTIONS.
#   tributary_provide(<target> PACKAGE <package> DEBIAN <Debian package> SOURCE <function in DependencySources> [OPTIONS <name=value>...])
macro(tributary_provide target)
  cmake_parse_arguments(_provide "" "PACKAGE;DEBIAN;SOURCE" "OPTIONS" ${ARGN})
  if(NOT TARGET ${target})
    find_package(${_provide_PACKAGE} QUIET)
  endif()
  if(NOT TARGET ${target})
    tributary_require_provider("${_provide_PACKAGE}" "install it (Debian: apt-get install ${_provide_DEBIAN})")
    cmake_language(CALL ${_provide_SOURCE} _provide_source)
    if(NOT _provide_source)
      message(FATAL_ERROR "Tributary: ${_provide_PACKAGE} is not installed and its release archive cannot be downloaded; "
                          "install it (Debian: apt-get install ${_provide_DEBIAN}).")
    endif()
    foreach(_provide_option IN LISTS _provide_OPTIONS)
      string(REPLACE "=" ";" _provide_option "${_provide_option}")
      list(GET _provide_option 0 _provide_name)
      list(GET _provide_option 1 _provide_value)
      set(${_provide_name} ${_provide_value} CACHE BOOL "")
    endforeach()
    add_subdirectory("${_provide_source}" "${CMAKE_BINARY_DIR}/_deps/${_provide_PACKAGE}" EXCLUDE_FROM_ALL SYSTEM)
  endif()
endmacro()

macro(tributary_provide_googletest)
  tributary_provide(GTest::gtest PACKAGE GTest DEBIAN libgtest-dev SOURCE tributary_googletest_source
                    OPTIONS BUILD_GMOCK=OFF INSTALL_GTEST=OFF)
endmacro()

macro(tributary_provide_benchmark)
  tributary_provide(benchmark::benchmark PACKAGE benchmark DEBIAN libbenchmark-dev SOURCE tributary_benchmark_source
                    OPTIONS BENCHMARK_ENABLE_TESTING=OFF BENCHMARK_ENABLE_INSTALL=OFF BENCHMARK_ENABLE_WERROR=OFF)
endmacro()

macro(tributary_provide_cli11)
  tributary_provide(CLI11::CLI11 PACKAGE CLI11 DEBIAN libcli11-dev SOURCE tributary_cli11_source
                    OPTIONS CLI11_BUILD_TESTS=OFF CLI11_BUILD_EXAMPLES=OFF CLI11_BUILD_DOCS=OFF)
endmacro()

macro(tributary_provide_json)
  tributary_provide(nlohmann_json::nlohmann_json PACKAGE nlohmann_json DEBIAN nlohmann-json3-dev SOURCE tributary_json_source
                    OPTIONS JSON_BuildTests=OFF)
endmacro()

function(tributary_require_provider what remedy)
  if(Tributary_DEPENDENCY_PROVIDER STREQUAL "none")
    message(FATAL_ERROR "Tributary: ${what} not found; ${remedy}, or let it be fetched: Tributary_DEPENDENCY_PROVIDER=auto.")
  endif()
endfunction()
