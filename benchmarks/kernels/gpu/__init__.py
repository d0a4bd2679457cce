"""The benchmark of the GPU kernels: `python -m benchmarks.kernels.gpu`.

`comparisons` lists the comparisons, `calls` makes the kernels' calls, `baselines` torch's. `timing` times them, and `measure`
turns times into measurements. `compile_report` is a command of its own: the compiler's report on the kernels.
"""
