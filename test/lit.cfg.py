"""The lit suite: `lit-22 build/test` after configuring."""

import os
import sys

import lit.formats

config.name = "moec"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".test"]
config.excludes = ["models"]
config.test_source_root = os.path.join(config.moec_source_dir, "test")
config.test_exec_root = os.path.join(config.moec_binary_dir, "test")
config.environment["PATH"] = os.pathsep.join(
    [os.path.join(config.moec_binary_dir, "bin"), config.llvm_tools_dir, os.environ["PATH"]]
)
for name in ("MOEC_CPU", "ASAN_OPTIONS", "UBSAN_OPTIONS"):
    if name in os.environ:
        config.environment[name] = os.environ[name]
config.substitutions.append(("%models", os.path.join(config.test_source_root, "models")))
config.substitutions.append(("%python", sys.executable))
config.substitutions.append(("%src", config.moec_source_dir))
config.substitutions.append(
    ("%tblgen", f"mlir-tblgen -I {config.moec_source_dir} -I {os.path.join(config.llvm_tools_dir, '..', 'include')}")
)
