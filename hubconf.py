from star_upstream.formats.upstream import ENTRIES

dependencies = ["torch", "numpy", "safetensors", "soundfile", "yaml"]
globals().update(ENTRIES)
