"""The mini corpora, a module for each layout with ``make(root, rng, count)``: ``count`` scales a number of items."""
