"""The grid of decoding steps on trees of branches, and who computes them on the same shared pages.

`cells` are trees and heads as data; `problem` puts one on a device with its cache, plan, K, V and the expected output;
`ours`, `peers` and `flashinfer_peers` are the contestants.
"""
