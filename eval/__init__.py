"""Measures any s3prl upstream on SUPERB tasks: ``python -m eval run``.

Read :mod:`eval.run` first (one upstream on a list of tasks), then the rooms in the order of the data:

- :mod:`eval.data`: small corpora made by synthesis, and what is there of the official ones
- :mod:`eval.features`: an upstream to features, once
- :mod:`eval.heads`: features to heads, for every learning rate and fold
- :mod:`eval.tasks`: one file a task: facts, head, metrics
- :mod:`eval.report`: records to tables, a page and pictures
"""
