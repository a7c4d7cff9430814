"""cDAL networks as ONNX graphs: export of model bundles, training artifacts, runtime set-up.

The network is written once (`generator`, `discriminator`) over a small graph builder (`graph`); inference
and training differ only in how the builder spells an operation. numpy and onnx suffice; torch is never needed.
"""

__version__ = "0.1.0"
