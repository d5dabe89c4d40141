"""Side-by-side benchmarks on an emulated cluster of one Linux machine.

``python -m benchmarks NAME`` runs one; :mod:`benchmarks.cluster` is the cluster, :mod:`benchmarks.clusters` the named
ones, :mod:`benchmarks.rank` what a measured process calls, :mod:`benchmarks.results` the form of every result.
"""
