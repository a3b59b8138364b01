"""A model as files that run without this package.

origin.py        what every one says of where it comes from
onnx.py          waveforms in, states or answers out, for onnxruntime
stream.py        a step of a model that streams, its state in and out
int8.py          the same with 8-bit weights and activations
transformers.py  a folder that AutoModel of the transformers library loads
upstream.py      an exported file as an upstream, so that it can be scored
"""
