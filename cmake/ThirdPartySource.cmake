# Obtains the sources of a third-party library: download with a hash check, extract the needed subfolder only, patch.
# Usable from a project and from `cmake -P`.
#
#   third_party_source(<name>
#     PROVIDER auto|github|pypi     auto: the archive at URL, then PYPI
#     CACHE    <folder>             downloads and extracted trees
#     [URL  <archive> URL_SHA256 <hash> URL_SUBDIR <folder in it>]
#     [PYPI <distribution>==<version> PYPI_SHA256 <hash of the source package> PYPI_SUBDIR <folder in it>
#      PYPI_BACKEND <the build backend that its pyproject.toml names> [PYPI_PATCHES <file>...]]
#     [OPTIONAL]                    an unreachable library gives an empty result instead of an error
#     RESULT   <variable>)          the source folder
#
# An extracted tree's name carries a hash of archive, subfolder and patches: it is never patched twice, a change of any of
# them gives a new tree, and once there it needs no network.
include_guard(GLOBAL)

function(third_party_source name)
  cmake_parse_arguments(
    PARSE_ARGV 1 arg "OPTIONAL"
    "PROVIDER;CACHE;URL;URL_SHA256;URL_SUBDIR;PYPI;PYPI_SHA256;PYPI_SUBDIR;PYPI_BACKEND;RESULT" "PYPI_PATCHES")
  if(arg_PROVIDER STREQUAL "auto")
    set(providers github pypi)
  elseif(arg_PROVIDER MATCHES "^(github|pypi)$")
    set(providers ${arg_PROVIDER})
  else()
    message(FATAL_ERROR "${name}: unknown provider '${arg_PROVIDER}' (auto, github or pypi)")
  endif()
  set(downloads "${arg_CACHE}/download")
  file(MAKE_DIRECTORY "${downloads}")
  file(LOCK "${arg_CACHE}/lock" GUARD FUNCTION TIMEOUT 1200)

  set(github_id "${arg_URL_SHA256} ${arg_URL_SUBDIR}")
  set(pypi_id "${arg_PYPI_SHA256} ${arg_PYPI_SUBDIR}")
  foreach(patch IN LISTS arg_PYPI_PATCHES)
    file(SHA256 "${patch}" hash)
    string(APPEND pypi_id " ${hash}")
  endforeach()

  # What is there already goes before any download.
  foreach(provider IN LISTS providers)
    string(SHA256 id "${${provider}_id}")
    string(SUBSTRING "${id}" 0 12 id)
    set(${provider}_tree "${arg_CACHE}/${name}-${id}")
    if(EXISTS "${${provider}_tree}/.complete")
      set(${arg_RESULT} "${${provider}_tree}" PARENT_SCOPE)
      return()
    endif()
  endforeach()

  set(reasons "")
  foreach(provider IN LISTS providers)
    if(provider STREQUAL "github")
      _third_party_download("${name}" "${arg_URL}" "${arg_URL_SHA256}" "${downloads}" archive reason)
      set(subdir "${arg_URL_SUBDIR}")
      set(patches "")
    else()
      _third_party_pip_download("${arg_PYPI}" "${arg_PYPI_BACKEND}" "${arg_PYPI_SHA256}" "${downloads}" archive reason)
      set(subdir "${arg_PYPI_SUBDIR}")
      set(patches "${arg_PYPI_PATCHES}")
    endif()
    if(archive)
      _third_party_unpack("${name}" "${archive}" "${subdir}" "${patches}" "${${provider}_tree}")
      set(${arg_RESULT} "${${provider}_tree}" PARENT_SCOPE)
      return()
    endif()
    string(APPEND reasons "\n  ${reason}")
  endforeach()
  if(arg_OPTIONAL)
    message(STATUS "${name}: cannot be fetched:${reasons}")
    set(${arg_RESULT} "" PARENT_SCOPE)
  else()
    message(FATAL_ERROR "${name} cannot be fetched:${reasons}\n")
  endif()
endfunction()

# matches: whether the file exists and has this hash.
function(_third_party_check file sha256 matches)
  set(${matches} FALSE PARENT_SCOPE)
  if(EXISTS "${file}")
    file(SHA256 "${file}" actual)
    if(actual STREQUAL sha256)
      set(${matches} TRUE PARENT_SCOPE)
    else()
      message(WARNING "${file}: SHA-256 is ${actual}, expected ${sha256}; not used")
    endif()
  endif()
endfunction()

# archive: the downloaded file, or empty with a reason.
function(_third_party_download name url sha256 folder archive reason)
  get_filename_component(leaf "${url}" NAME)
  set(file "${folder}/${name}-${leaf}")
  set(${archive} "${file}" PARENT_SCOPE)
  _third_party_check("${file}" "${sha256}" matches)
  if(matches)
    return()
  endif()
  message(STATUS "Fetching ${url}")
  # Without a name service this returns at once; a host that does not answer costs the connection's time-out.
  file(DOWNLOAD "${url}" "${file}" TLS_VERIFY ON INACTIVITY_TIMEOUT 15 TIMEOUT 300 STATUS status)
  list(GET status 0 failed)
  list(GET status 1 status)
  if(NOT failed)
    _third_party_check("${file}" "${sha256}" matches)
  endif()
  if(NOT matches)
    file(REMOVE "${file}")
    set(${archive} "" PARENT_SCOPE)
    set(${reason} "${url}: ${status}; without a network, put the archive there yourself: ${file}" PARENT_SCOPE)
  endif()
endfunction()

function(_third_party_pip result)
  foreach(python IN ITEMS "${Python3_EXECUTABLE}" python3 python)
    if(python)
      execute_process(COMMAND "${python}" -m pip --version RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
      if(status EQUAL 0)
        set(${result} "${python}" -m pip PARENT_SCOPE)
        return()
      endif()
    endif()
  endforeach()
  set(${result} "" PARENT_SCOPE)
endfunction()

function(_third_party_pip_download requirement backend sha256 folder archive reason)
  string(REPLACE "==" ";" parts "${requirement}")
  list(GET parts 0 distribution)
  list(GET parts 1 version)
  set(file "${folder}/${distribution}-${version}.tar.gz")
  set(${archive} "${file}" PARENT_SCOPE)
  _third_party_check("${file}" "${sha256}" matches)
  if(matches)
    return()
  endif()
  file(REMOVE "${file}")
  _third_party_pip(pip)
  if(NOT pip)
    set(${archive} "" PARENT_SCOPE)
    set(${reason} "${requirement}: no Python with pip on PATH (Debian: apt-get install python3-pip; or set Python3_EXECUTABLE)"
        PARENT_SCOPE)
    return()
  endif()

  # Even for `download`, pip asks the source package's own build backend for metadata, and first fetches that backend and its
  # dependencies, unpinned and unhashed.  Only the archive is wanted: a stub of the backend on PYTHONPATH, together with
  # --no-build-isolation, leaves exactly one hash-checked download and runs none of the package's code.
  set(stub "${folder}/pip-stub-${distribution}")
  file(REMOVE_RECURSE "${stub}")
  string(REPLACE "." "/" backend_path "${backend}")
  get_filename_component(backend_folder "${backend_path}" DIRECTORY)
  file(WRITE "${stub}/${backend_folder}/__init__.py" "")
  file(WRITE "${stub}/${backend_path}.py" "import os


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name = '${distribution}-${version}.dist-info'
    os.mkdir(os.path.join(metadata_directory, name))
    with open(os.path.join(metadata_directory, name, 'METADATA'), 'w') as file:
        file.write('Metadata-Version: 2.1\\nName: ${distribution}\\nVersion: ${version}\\n')
    return name


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    raise RuntimeError('this backend only serves pip download')
")
  file(WRITE "${folder}/${distribution}.txt" "${requirement} --hash=sha256:${sha256}\n")
  message(STATUS "Fetching ${requirement} (source package) with pip")
  # Never `--no-binary :all:`: it would rebuild the build tools too.
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env "PYTHONPATH=${stub}" ${pip} download --no-input --no-deps --no-build-isolation
            --disable-pip-version-check --progress-bar off --require-hashes --no-binary "${distribution}" --dest "${folder}" -r
            "${folder}/${distribution}.txt"
    RESULT_VARIABLE status
    OUTPUT_VARIABLE log
    ERROR_VARIABLE log
    INPUT_FILE /dev/null)
  _third_party_check("${file}" "${sha256}" matches)
  if(NOT matches)
    set(${archive} "" PARENT_SCOPE)
    string(JOIN "\n" text "pip could not fetch ${requirement} (exit status ${status}):" "${log}"
           "  without a package index, put the source package there yourself: ${file}")
    set(${reason} "${text}" PARENT_SCOPE)
  endif()
endfunction()

function(_third_party_unpack name archive subdir patches tree)
  set(unpacked "${tree}.unpacked")
  file(REMOVE_RECURSE "${unpacked}" "${tree}")
  file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${unpacked}" PATTERNS "${subdir}/*")
  foreach(patch IN LISTS patches)
    find_program(PATCH_EXECUTABLE patch)
    mark_as_advanced(PATCH_EXECUTABLE)
    if(NOT PATCH_EXECUTABLE)
      message(FATAL_ERROR "The program `patch` is needed (Debian: apt-get install patch).")
    endif()
    execute_process(
      COMMAND "${PATCH_EXECUTABLE}" -p1 --batch --forward --fuzz=0 -i "${patch}"
      WORKING_DIRECTORY "${unpacked}/${subdir}"
      RESULT_VARIABLE status
      OUTPUT_VARIABLE log
      ERROR_VARIABLE log)
    if(NOT status EQUAL 0)
      message(FATAL_ERROR "${patch} does not apply to ${name}:\n${log}")
    endif()
  endforeach()
  file(RENAME "${unpacked}/${subdir}" "${tree}")
  file(REMOVE_RECURSE "${unpacked}")
  file(TOUCH "${tree}/.complete")
endfunction()
