"""The GPU kernels' benchmark: `python -m enginewright.plugins.bench_cuda`.

`contests` says what is compared, `calls` makes our calls, `rivals` torch's; `timing` times them, `measure` turns times into
results. Nothing outside imports this.
"""
