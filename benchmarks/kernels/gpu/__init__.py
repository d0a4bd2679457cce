"""The GPU kernels' benchmark: `python -m benchmarks.kernels.gpu`.

`comparisons` lists what is compared, `calls` makes our calls, `baselines` torch's; `timing` times them, `measure` turns times
into results. `compile_report` is a command of its own: what the compiler says of the kernels.
"""
