"""Backends: modules that compute the ops. :mod:`asyncthink_kernels.dispatch` chooses among them.

A backend is a module with one function for each op it has, by the op's name and with the signature it has in
:mod:`~asyncthink_kernels.backends.reference`, plus two functions that describe it::

    unavailable_reason(op: str, device: str) -> str | None   # one line; None: the op runs on this device type
    note(device: str) -> str                                 # one short line: what runs ("avx512, 2 threads")

What a backend may rely on: `ops` has checked shapes, dtypes, devices and strides, and has allocated every output; the
values of a plan were checked when it was made (:mod:`asyncthink_kernels.plan`). What it must do: check all other index
*values* (page ids, slots, rows: everything that becomes an address) and raise ValueError before anything is written.
"""
