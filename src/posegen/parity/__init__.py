"""Comparison with tensors that the official implementations computed: ``posegen parity CASE...``.

A case names its method; ``posegen.parity.<method>`` holds one function ``compute(case) -> {output: tensor}``, found by that name. Nobody imports this
package.
"""
