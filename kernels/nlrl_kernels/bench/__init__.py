"""Every kernel beside what users would run in its place, and beside the limits of the GPU: `nlrl_kernels.bench`.

python -m nlrl_kernels.bench [--kernels NAME ...] [--quick] [--limit SECONDS] [--out FOLDER]
"""
