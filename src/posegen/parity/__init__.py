"""Comparison with tensors that the official programs computed: ``posegen parity [FOLDER...]``.

A case names its method; ``posegen.parity.<method>`` holds a function ``<method>_outputs(case)``, found by that
name, that yields (output, tensor).
"""
