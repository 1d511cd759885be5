# Pages of docs/ that mlir-tblgen writes. They are committed, so that they can be read without a build; a lit test
# (test/**/docs.test) holds each of them against its source.

# Writes all generated pages anew.
add_custom_target(moec-docs)

# moec_add_doc(<page> <td> <options of mlir-tblgen>): docs/<page>.md comes from <td>, a file of the calling folder.
function(moec_add_doc page td)
  set(output ${PROJECT_SOURCE_DIR}/docs/${page}.md)
  get_filename_component(folder ${output} DIRECTORY)
  string(REPLACE "/" "-" target moec-docs-${page})
  add_custom_target(${target}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${folder}
    COMMAND ${MLIR_TABLEGEN_EXE} ${ARGN} -I ${PROJECT_SOURCE_DIR} -I ${MLIR_INCLUDE_DIRS}
            ${CMAKE_CURRENT_SOURCE_DIR}/${td} -o ${output}
    COMMENT "Writing docs/${page}.md"
    VERBATIM)
  add_dependencies(moec-docs ${target})
endfunction()
