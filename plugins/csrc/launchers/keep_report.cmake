# Runs the compiler and keeps what ptxas reports (registers, stack, spills) next to the object, as OBJECT.report.txt.
#
#     cmake -P keep_report.cmake -- nvcc ... -o OBJECT
#
# An incremental build compiles, and so reports, nothing: tests read the files. The build shows everything else.
set(command)
set(object)
set(started FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(index RANGE ${last})
  set(argument "${CMAKE_ARGV${index}}")
  if(started)
    list(APPEND command "${argument}")
    if(previous STREQUAL "-o")
      set(object "${argument}")
    endif()
  elseif(argument STREQUAL "--")
    set(started TRUE)
  endif()
  set(previous "${argument}")
endforeach()

execute_process(COMMAND ${command} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(object)
  file(WRITE "${object}.report.txt" "${output}")
endif()
string(REGEX REPLACE "(ptxas info|    [0-9]+ bytes stack frame)[^\n]*\n" "" shown "${output}")
if(NOT shown STREQUAL "")
  message("${shown}")
endif()
if(NOT result EQUAL 0)
  message(FATAL_ERROR "the compiler failed: ${result}")
endif()
