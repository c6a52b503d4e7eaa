# Targets `check_format`, `check_tidy`, `check` (both) and `format`, for working on Tributary itself.
include_guard(GLOBAL)
find_program(Tributary_CLANG_FORMAT NAMES clang-format-14 clang-format)
find_program(Tributary_RUN_CLANG_TIDY NAMES run-clang-tidy-14 run-clang-tidy)
mark_as_advanced(Tributary_CLANG_FORMAT Tributary_RUN_CLANG_TIDY)
add_custom_target(check)

if(Tributary_CLANG_FORMAT)
  foreach(target IN ITEMS check_format format)
    add_custom_target(
      ${target}
      COMMAND "${CMAKE_COMMAND}" -DCLANG_FORMAT=${Tributary_CLANG_FORMAT} -DMODE=${target} "-DSOURCE=${PROJECT_SOURCE_DIR}" -P
              "${PROJECT_SOURCE_DIR}/cmake/ClangFormat.cmake"
      COMMENT "${target}"
      VERBATIM)
  endforeach()
  add_dependencies(check check_format)
endif()

# On host builds only: the compile commands of a CUDA build go through nvcc.  With OpenMP, clang needs its own omp.h (Debian:
# libomp-dev).
if(Tributary_RUN_CLANG_TIDY AND NOT Kokkos_ENABLE_CUDA)
  add_custom_target(
    check_tidy
    COMMAND "${Tributary_RUN_CLANG_TIDY}" -quiet -p "${PROJECT_BINARY_DIR}" -extra-arg=-Wno-unknown-warning-option
            "^${PROJECT_SOURCE_DIR}/(src|perf|unit_tests)/"
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    COMMENT "check_tidy"
    USES_TERMINAL VERBATIM)
  add_dependencies(check check_tidy)
endif()
