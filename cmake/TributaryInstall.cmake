# Install and the exported package: find_package(Tributary) gives Tributary::tributary.
include_guard(GLOBAL)
include(CMakePackageConfigHelpers)
set(_tributary_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/Tributary")

install(TARGETS tributary EXPORT TributaryTargets)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/" "${PROJECT_BINARY_DIR}/include/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.hpp")
install(EXPORT TributaryTargets NAMESPACE Tributary:: DESTINATION "${_tributary_package_dir}")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" "${PROJECT_SOURCE_DIR}/THIRD_PARTY_NOTICES.md"
        DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/Tributary")

# What the package asks for again: the same Kokkos, which is in our own prefix when it was built here.
list(TRANSFORM Tributary_SPACES TOUPPER OUTPUT_VARIABLE Tributary_KOKKOS_DEVICES)
list(JOIN Tributary_KOKKOS_DEVICES " " Tributary_KOKKOS_DEVICES)
set(Tributary_KOKKOS_HINT "")
if(NOT Tributary_BUILDS_KOKKOS)
  set(Tributary_KOKKOS_HINT "${Kokkos_DIR}")
endif()
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/TributaryConfig.cmake.in" "${PROJECT_BINARY_DIR}/TributaryConfig.cmake"
                              INSTALL_DESTINATION "${_tributary_package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/TributaryConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/TributaryConfig.cmake" "${PROJECT_BINARY_DIR}/TributaryConfigVersion.cmake"
        DESTINATION "${_tributary_package_dir}")
