"""Structured pruning during distillation, as DPHuBERT has it (Peng et al., Interspeech 2023, arXiv 2305.17651).

:mod:`.gates` puts gates on an encoder's channels, heads and FFN units, :mod:`.size` gives its expected size in closed
form, :mod:`.constraint` steers that to a target, :meth:`.gates.GatedEncoder.settle` fixes the gates at exactly the
target, and :mod:`.cut` makes the encoder that is really smaller. What can be chosen is in :mod:`.config`, which loads
none of them.

Gates start, are drawn and are steered as in the authors' code (github.com/pyf98/DPHuBERT, commit c18093f). How they are
settled is our choice: of each group as many stay open as are expected to be, the most probable first (theirs too),
after all locations moved by one common number that brings the whole model to its target (heads, channels and units then
move a little more, to make up for the coarser steps of whole parts and heads); theirs are not moved, so that the cut
model is as large as the gates happen to say. An open gate then has the median of its distribution; theirs sigmoid(0.8
log a / temperature). Rounding (``round_channels``, ``round_units``) counts the next most probable ones as open too,
with their gates' values, before that number is found: a rounded model is as small as the target asks, and the gated
model in eval mode still equals the cut one.
"""
